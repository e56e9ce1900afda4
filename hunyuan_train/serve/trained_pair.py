"""Whether an adapter meets the base that it was trained on: its weights, in its form.

An adapter learns to correct the base that it sees. What it was trained on, its manifest says where
that was quantised; without a manifest nothing is known, and nothing refused. No torch is needed.
"""

from pathlib import Path

from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.base_folder import identify_weights, resolve_base
from hunyuan_train.model.expert_formats import GENTLEST_FIRST
from hunyuan_train.serve.errors import ServeError

MANIFEST = "export_manifest.json"  # beside an adapter's or a model's weights
BASE, IDENTITY, FORM = "base", "base_identity", "expert_weights"
FLAG = "--any_base"


def check_pair(adapter: Path, model: Path) -> None:
    """Refuse a base that is not the one that an adapter was trained on.

    Args:
        adapter: its folder.
        model: the folder of the base that an engine would get.

    Raises:
        ServeError: naming the form or the weights that differ, and what to give instead.
    """
    path = adapter / MANIFEST
    if not path.exists():
        return
    try:
        fields = read_json_object(path)
        base, identity, form = (str(fields[name]) for name in (BASE, IDENTITY, FORM))
    except (OSError, ValueError, KeyError) as error:
        raise ServeError(
            f"{path} does not say on which base the adapter was trained ({error}); export it again"
        ) from error
    anyway = f"serve it with {FLAG} if the answers are good enough for you"
    if form in GENTLEST_FIRST[1:]:
        raise ServeError(
            f"{adapter} was trained on {base} with its experts in {form}, made while loading, and "
            f"no engine loads that form: with {model} it would be another pair than was trained. "
            f"What {form} changed of the base, expert_loss.json of its run says; {anyway}, or "
            f"merge it (`hunyuan-train merge`), `quantize` the result, and read what survives"
        )
    stored = resolve_base(str(model)).stored_as or "full precision"
    if stored != form:
        raise ServeError(
            f"{adapter} was trained on {base}, whose weights are stored as {form}, and those of "
            f"{model} are stored as {stored}; give that base with --base DIR, or {anyway}"
        )
    if identify_weights(str(model)) != identity:
        raise ServeError(
            f"{adapter} was trained on {base} ({identity}), and {model} has other weights "
            f"({identify_weights(str(model))}); give that base with --base DIR, or {anyway}"
        )

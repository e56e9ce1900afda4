"""Whether an adapter meets the base that it was trained on: its weights, in its form.

An adapter learns to correct the base that it sees. What it was trained on, its manifest says where
that was quantised; without a manifest nothing is known, and nothing refused. Engines, `chat` and
`evaluate` ask here. No torch is needed.
"""

from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.base_folder import identify_weights, resolve_base
from hunyuan_train.model.expert_formats import GENTLEST_FIRST
from hunyuan_train.model.released_files import EXPORT_MANIFEST
from hunyuan_train.serve.errors import ServeError

BASE, IDENTITY, FORM = "base", "base_identity", "expert_weights"
FLAG = "--any_base"
FLAG_HELP = "use an adapter with another base than it was trained on"


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The base that an adapter was trained on, as its manifest has it."""

    base: str  # a folder or a preset
    identity: str  # of its weights
    form: str  # of its frozen experts: how the base stores them, or what was made while loading

    @property
    def is_made(self) -> bool:
        """Whether experts were quantised while loading, from a base in full precision."""
        return self.form in GENTLEST_FIRST[1:]


def read_trained_on(adapter: Path) -> TrainedOn | None:
    """What the manifest of an adapter says; None where there is none.

    Raises:
        ServeError: it is damaged.
    """
    path = adapter / EXPORT_MANIFEST
    if not path.exists():
        return None
    try:
        fields = read_json_object(path)
        return TrainedOn(*(str(fields[name]) for name in (BASE, IDENTITY, FORM)))
    except (OSError, ValueError, KeyError) as error:
        raise ServeError(
            f"{path} does not say on which base the adapter was trained ({error}); export it again"
        ) from error


def check_base(adapter: Path, model: Path) -> None:
    """Refuse a base with other weights, or stored in another form, than an adapter was trained on.

    Args:
        adapter: its folder.
        model: the folder of the base that it would be put on.

    Raises:
        ServeError: naming what differs, and what to give instead.
    """
    trained = read_trained_on(adapter)
    if trained is None:
        return
    remedy = f"give that base with --base DIR, or take this one with {FLAG}"
    stored = resolve_base(str(model)).stored_as or "full precision"
    wanted = "full precision" if trained.is_made else trained.form
    if stored != wanted:
        raise ServeError(
            f"{adapter} was trained on {trained.base}, whose weights are stored as {wanted}, and "
            f"those of {model} are stored as {stored}; {remedy}"
        )
    if identify_weights(str(model)) != trained.identity:
        raise ServeError(
            f"{adapter} was trained on {trained.base} ({trained.identity}), and {model} has other "
            f"weights ({identify_weights(str(model))}); {remedy}"
        )


def check_pair(adapter: Path, model: Path) -> None:
    """Refuse to let an engine serve another pair than was trained.

    Args:
        adapter: its folder.
        model: the folder of the base that an engine would get.

    Raises:
        ServeError: no engine loads that form, or see `check_base`.
    """
    trained = read_trained_on(adapter)
    if trained is not None and trained.is_made:
        raise ServeError(
            f"{adapter} was trained on {trained.base} with its experts in {trained.form}, made "
            f"while loading, and no engine loads that form: with {model} it would be another pair "
            f"than was trained. `chat` and `evaluate` compute that pair. What {trained.form} "
            "changed of the base, expert_loss.json of its run says; serve it with "
            f"{FLAG} if the answers are good enough for you, or merge it (`hunyuan-train merge`), "
            "`quantize` the result, and read what survives"
        )
    check_base(adapter, model)

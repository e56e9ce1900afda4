"""What lies beside `hy.tiktoken` in a folder and is not read: added tokens, another template.

Others read it, so a model that was made with it expects what training here does not give.
"""

from collections.abc import Iterator
from pathlib import Path

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.template_files import (
    CONFIG,
    has_other_template,
    read_if_whole,
)

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
_NUM_NAMED = 3


def describe_unread(folder: Path, known: dict[str, int], grammar: Grammar) -> tuple[str, ...]:
    """Sentences about what a folder has beside its ranks.

    Args:
        folder: of the model or tokenizer.
        known: ids of the special tokens, by name.
        grammar: by which dialogues are written.

    Raises:
        DataError: it gives a special token another id than its ranks do.
    """
    added = dict(_find_added(folder))
    for token, number in added.items():
        if number is not None and known.get(token, number) != number:
            raise DataError(
                f"{folder} gives {token} the id {number}, and by its ranks it is {known[token]}; "
                "the rank file is cut or of another model, copy the folder again"
            )
    remarks = []
    if new := sorted(added.keys() - known.keys()):
        named = ", ".join(new[:_NUM_NAMED]) + (" and more" if len(new) > _NUM_NAMED else "")
        remarks.append(
            f"{folder} adds {len(new)} token(s) to the vocabulary ({named}), which are not read: "
            "in texts they are ordinary text"
        )
    if has_other_template(folder, grammar):
        remarks.append(
            f"the chat template in {folder} is not the released one and is not read: dialogues "
            "are written as the released one writes them"
        )
    return tuple(remarks)


def _find_added(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Each added token with the id it is given, as far as one is."""
    config, by_name, tokenizer, special = (
        read_if_whole(folder / name)
        for name in (CONFIG, "added_tokens.json", "tokenizer.json", "special_tokens_map.json")
    )
    for one in (config, special):
        if isinstance(one, dict):
            extra = one.get("additional_special_tokens")
            named = [*(extra if isinstance(extra, list) else []), *map(one.get, _ROLES)]
            yield from ((token, None) for token in map(_spell, named) if token)
    if isinstance(by_name, dict):
        yield from ((token, _as_id(number)) for token, number in by_name.items())
    if isinstance(config, dict) and isinstance(config.get("added_tokens_decoder"), dict):
        decoder = config["added_tokens_decoder"].items()
        yield from ((token, _as_id(number)) for number, one in decoder if (token := _spell(one)))
    if isinstance(tokenizer, dict) and isinstance(tokenizer.get("added_tokens"), list):
        for one in tokenizer["added_tokens"]:
            if isinstance(one, dict) and (token := _spell(one)):
                yield token, _as_id(one.get("id"))


def _spell(token: object) -> str:
    """The text of a token, which is written alone or with its settings."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _as_id(number: object) -> int | None:
    try:
        return int(str(number))
    except ValueError:
        return None

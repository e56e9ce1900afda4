"""What a tokenizer folder holds: a grammar and a tokenizer.

The door of `grammar`: a folder goes in, its `Tokenizer` with the `Grammar` comes out. A new grammar
is a folder beside `hunyuan_a13b`, found here by the markers that the folder's vocabulary spells.
"""

import functools
from pathlib import Path

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import RANK_FILE, read_tokenizer
from hunyuan_train.families.grammar.hunyuan_small import grammar as small_grammar
from hunyuan_train.families.grammar.hunyuan_small import markers as small_markers
from hunyuan_train.families.grammar.hy_v3 import grammar as hy_v3_grammar
from hunyuan_train.families.grammar.hy_v3 import markers as hy_v3_markers
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.new_tokens import add_from_file, add_stored, read_stored
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.grammar.tokenizer_json import FILE, build, find_missing, read_files


@functools.cache
def find_grammar(folder: Path | None) -> Grammar:
    """The grammar of the model that a tokenizer folder was published with.

    Args:
        folder: None where no model is named: data is then read as for A13B.

    Raises:
        DataError: a damaged tokenizer.json, or one with markers of no grammar here.
    """
    if folder is None or (folder / RANK_FILE).exists() or not (folder / FILE).exists():
        return HUNYUAN_A13B
    files = read_files(folder)
    missing, learned = find_missing(files), read_stored(folder)
    added = {name: token for name, token in files.added.items() if name not in learned}
    if hy_v3_markers.are_markers(added):
        found = hy_v3_markers.find_markers(added, files.config, folder, missing=missing)
        return hy_v3_grammar.build_grammar(found)
    if small_markers.are_markers(added):
        small = small_markers.find_markers(added, files.config, folder, missing=missing)
        return small_grammar.build_grammar(small)
    raise DataError(
        f"the tokenizer in {folder} has none of the markers that Hunyuan models open their turns "
        "with; give the folder that was published with the model"
    )


def load_tokenizer(folder: Path, add_tokens: str | Path | None = None) -> Tokenizer:
    """Read the tokenizer of a model or tokenizer folder.

    Args:
        folder: with the tokens that its model has learned besides, if any.
        add_tokens: the setting of this name.

    Raises:
        DataError: it has none, or a damaged one; or tokens that cannot be added.
    """
    return _load(folder, Path(add_tokens) if add_tokens else None)


@functools.cache  # by what is asked for, however it is said: each takes as long as a megabyte
def _load(folder: Path, add_tokens: Path | None) -> Tokenizer:
    grammar = find_grammar(folder)
    if grammar is HUNYUAN_A13B:
        published = read_tokenizer(folder, grammar)
    else:
        published = build(read_files(folder), grammar)
    tokenizer = add_stored(published, folder)
    return add_from_file(tokenizer, add_tokens) if add_tokens else tokenizer

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
    missing = find_missing(files)
    if hy_v3_markers.are_markers(files.added):
        found = hy_v3_markers.find_markers(files.added, files.config, folder, missing=missing)
        return hy_v3_grammar.build_grammar(found)
    if small_markers.are_markers(files.added):
        small = small_markers.find_markers(files.added, files.config, folder, missing=missing)
        return small_grammar.build_grammar(small)
    raise DataError(
        f"the tokenizer in {folder} has none of the markers that Hunyuan models open their turns "
        "with; give the folder that was published with the model"
    )


@functools.cache
def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model or tokenizer folder.

    Raises:
        DataError: it has none, or a damaged one.
    """
    grammar = find_grammar(folder)
    if grammar is HUNYUAN_A13B:
        return read_tokenizer(folder, grammar)
    return build(read_files(folder), grammar)

"""What a tokenizer folder holds: a grammar and a tokenizer.

The door of `grammar`: a folder goes in, its `Tokenizer` with the `Grammar` comes out. A new grammar
is a folder beside `hunyuan_a13b`, found here.
"""

import functools
from pathlib import Path

from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import read_tokenizer
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import Tokenizer


def find_grammar(folder: Path | None) -> Grammar:
    """The grammar of the model that a tokenizer folder was published with.

    Args:
        folder: None where no model is named: data is then read as for A13B.
    """
    # One grammar so far, so nothing in the folder decides. A second one is told apart by the
    # markers that the folder's files spell.
    return HUNYUAN_A13B


@functools.cache
def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model or tokenizer folder.

    Raises:
        DataError: it has none, or a damaged one.
    """
    return read_tokenizer(folder, find_grammar(folder))

"""The tokenizers of the tests of data, for those of grammars."""

from tests.data.conftest import reference, tokenizer, vendor_tokenizer

__all__ = ["reference", "tokenizer", "vendor_tokenizer"]

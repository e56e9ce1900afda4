"""The tokenizers of the tests of data, for those of grammars."""

from tests.data.conftest import golden, reference, tokenizer, vendor_tokenizer

__all__ = ["golden", "reference", "tokenizer", "vendor_tokenizer"]

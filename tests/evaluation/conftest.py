"""Data sets and tokenizers of the tests of data, for answers to their prompts."""

from tests.data.conftest import prepare, tokenizer, write_records

__all__ = ["prepare", "tokenizer", "write_records"]

"""Run llama.cpp's converter, in an interpreter that has its packages; a process of its own.

    convert.py CONVERTER_FOLDER PRE_TOKENIZER VOCAB_SIZE BOS_ID ARGUMENTS_OF_THE_CONVERTER...

The converter knows a vocabulary by a hash of some encoded text, and refuses any other, as it could
not tell how that one splits text. PRE_TOKENIZER answers it where our caller knows ("" where not).
It also writes the released BOS id of the mixture of experts, whatever the vocabulary's size.
"""

import ctypes
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def _answer_for(pre_tokenizer: str, *, vocab_size: int, bos_id: int) -> None:
    """Let the converter take a vocabulary that is none of those it lists."""
    import gguf
    from conversion.base import TextModel

    look_up, write_bos = TextModel.get_vocab_base_pre, gguf.GGUFWriter.add_bos_token_id

    def name_pre_tokenizer(self: Any, tokenizer: Any) -> str:
        try:
            return str(look_up(self, tokenizer))
        except NotImplementedError:
            if not pre_tokenizer:
                raise
            return pre_tokenizer

    def write_known_bos(self: Any, token: int) -> None:
        write_bos(self, token if token < vocab_size else bos_id)

    TextModel.get_vocab_base_pre = name_pre_tokenizer
    gguf.GGUFWriter.add_bos_token_id = write_known_bos


def main() -> None:
    """Convert; the arguments stand in the module's docstring."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    folder, pre_tokenizer, vocab_size, bos_id, *arguments = sys.argv[1:]
    sys.path[:0] = [folder, str(Path(folder) / "gguf-py")]  # llama.cpp's packages lie beside it
    try:
        _answer_for(pre_tokenizer, vocab_size=int(vocab_size), bos_id=int(bos_id))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "conversion":
            raise
        # A converter of before 2026 is one script, which knows the released vocabularies only.
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_module("convert_hf_to_gguf", run_name="__main__")


if __name__ == "__main__":
    main()

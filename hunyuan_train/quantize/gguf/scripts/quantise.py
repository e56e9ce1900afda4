"""Run llama.cpp's quantiser: its program, or its library in an interpreter that has it.

    quantise.py SOURCE TARGET TYPE NUMBER_OF_TYPE NUM_THREADS [PROGRAM]

A process of its own, as the library writes to the screen and ends the process where it fails.
"""

import ctypes
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Quantise; the arguments stand in the module's docstring."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # holds for what is run, too
    source, target, type_, number, num_threads, *program = sys.argv[1:]
    if program:
        os.execv(program[0], [program[0], source, target, type_, num_threads])
    library, parameters, pointer = _open_library()
    parameters.ftype, parameters.nthread = int(number), int(num_threads)
    library.llama_backend_init()
    return int(library.llama_model_quantize(source.encode(), target.encode(), pointer))


def _open_library() -> tuple[Any, Any, Any]:
    """The library, its default parameters, and the pointer that hands them over."""
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ModuleNotFoundError:
        import llama_cpp

        parameters = llama_cpp.llama_model_quantize_default_params()
        return llama_cpp, parameters, ctypes.byref(parameters)
    library, pointer = get_lib(), get_ffi().new("llama_model_quantize_params *")
    pointer[0] = library.llama_model_quantize_default_params()
    return library, pointer, pointer


if __name__ == "__main__":
    sys.exit(main())

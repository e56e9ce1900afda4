"""Run llama.cpp's quantiser, its program or its library.

    quantise.py SOURCE TARGET TYPE NUMBER_OF_TYPE NUM_THREADS PROGRAM_OR_LIBRARY

A process of its own, as the library writes to the screen and ends the process where it fails.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


class Parameters(ctypes.Structure):
    """`llama_model_quantize_params` of any version: the first two fields never changed."""

    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("others", ctypes.c_byte * 1016),  # more than there are: the library fills what it knows
    ]


def main() -> int:
    """Quantise; the arguments stand in the module's docstring."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # holds for what is run, too
    source, target, type_, number, num_threads, tool = sys.argv[1:]
    if ".so" not in tool:
        os.execv(tool, [tool, source, target, type_, num_threads])
    library = ctypes.CDLL(tool)
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.restype = ctypes.c_uint32
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    parameters.type, parameters.num_threads = int(number), int(num_threads)
    arguments = (source.encode(), target.encode(), ctypes.byref(parameters))
    return int(library.llama_model_quantize(*arguments))


if __name__ == "__main__":
    sys.exit(main())

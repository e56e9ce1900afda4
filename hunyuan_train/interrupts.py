"""Ctrl-C while a process is busy with imports, where it comes out as something else.

C code that is interrupted in an import reports the import as failed: numpy with a page of advice.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_at_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, without a word; for imports, which leave nothing open."""
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heeded:  # what is ignored stays ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)

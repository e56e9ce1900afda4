"""`hunyuan-train COMMAND`: how a process begins and ends, whatever becomes of its screen."""

import os
import signal
import sys
from collections.abc import Sequence

from hunyuan_train.interrupts import ending_at_ctrl_c


def run_command(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and end the process with its exit code.

    Args:
        arguments: the command and its own; default: those of the process.
    """
    with ending_at_ctrl_c():
        from hunyuan_train.screen import outlive_the_screen

        outlive_the_screen(is_rank="RANK" in os.environ)
        from hunyuan_train.cli import main
    try:
        exit_code = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 128 + signal.SIGPIPE
    sys.exit(exit_code)


if __name__ == "__main__":
    run_command()

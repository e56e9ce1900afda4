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
        from hunyuan_train.screen import UnwrittenError, drop_answers, outlive_the_screen

        outlive_the_screen(is_rank="RANK" in os.environ)
        from hunyuan_train.cli import main
        from hunyuan_train.launcher.exit_codes import USER_ERROR
        from hunyuan_train.terminal import complain
    try:
        try:
            exit_code = main(sys.argv[1:] if arguments is None else arguments)
        finally:  # also where argparse ends the process
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        drop_answers()
        exit_code = 128 + signal.SIGPIPE
    except UnwrittenError as error:
        drop_answers()
        complain(f"error: {error}; free its disk, or send it elsewhere with > FILE")
        exit_code = USER_ERROR
    sys.exit(exit_code)


if __name__ == "__main__":
    run_command()

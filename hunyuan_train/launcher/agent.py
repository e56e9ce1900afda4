"""torchrun's own agent in a process of its own, with its last words replaced by ours.

`python -m hunyuan_train.launcher.agent TORCHRUN_ARGUMENTS` runs what the `torchrun` command runs,
but passes on the exit code of the rank that failed first (torchrun always says 1), and prints what
that rank said instead of a traceback of the agent.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from hunyuan_train.launcher.worker import FAILURES_VARIABLE


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code of the first that failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(describe_failure(rank, failure.exitcode), file=sys.stderr)  # noqa: T201
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def describe_failure(rank: int, exit_code: int) -> str:
    """The last words of a rank, or how it was ended where it had no time for any."""
    words = Path(os.environ[FAILURES_VARIABLE], f"rank{rank}.txt")
    if words.is_file():
        return words.read_text(encoding="utf-8")
    if exit_code == -signal.SIGKILL:
        return (
            f"error: rank {rank} was killed (SIGKILL); if nobody did, this machine ran out of "
            "memory: see `dmesg`, and try fewer processes or a smaller --max_seq_length"
        )
    if exit_code < 0:
        return f"error: rank {rank} was ended by {signal.Signals(-exit_code).name}"
    return f"error: rank {rank} ended with exit code {exit_code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

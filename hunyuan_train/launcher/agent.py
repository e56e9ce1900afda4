"""torchrun's own agent in a process of its own, with its last words replaced by ours.

`python -m hunyuan_train.launcher.agent TORCHRUN_ARGUMENTS` runs what the `torchrun` command runs,
but passes on the exit code of the rank that failed first (torchrun always says 1), and prints what
that rank said instead of a traceback of the agent.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from hunyuan_train.launcher.exit_codes import RESUME
from hunyuan_train.launcher.worker import FAILURES_VARIABLE


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return the exit code of the first that failed."""
    logging.disable()  # the agent narrates signals and exits; what matters is said below
    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if RESUME in exit_codes.values():  # all stopped as one; the agent may have ended the last
            return RESUME
        rank, words = find_cause(exit_codes, os.environ[FAILURES_VARIABLE])
        print(words, file=sys.stderr)  # noqa: T201 the last words of the run
        return exit_codes[rank] if exit_codes[rank] > 0 else 128 - exit_codes[rank]
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def find_cause(exit_codes: Mapping[int, int], folder: str) -> tuple[int, str]:
    """The local rank that failed first and its last words.

    A killed rank says nothing, while those it leaves behind complain of a lost connection; among
    ranks that ended by themselves the first to write is the cause.
    """
    for rank, exit_code in exit_codes.items():
        if exit_code < 0 and exit_code != -signal.SIGTERM:  # SIGTERM is how the agent stops them
            return rank, describe_end(rank, exit_code)
    files = sorted(Path(folder).glob("*.txt"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        if int(file.stem) in exit_codes:
            return int(file.stem), file.read_text(encoding="utf-8")
    rank = min(exit_codes)
    return rank, describe_end(rank, exit_codes[rank])


def describe_end(rank: int, exit_code: int) -> str:
    """How a rank was ended that said nothing."""
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

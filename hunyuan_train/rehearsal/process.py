"""The process of a rehearsal: loads the guard before torch, rehearses, and answers in JSON.

    python -m hunyuan_train.rehearsal.process < question > answer

A process of its own, because what pretends to be a GPU cannot be taken back. The question is a
pickle of its parent, a `Question`; what libraries print goes to stderr.
"""

import ctypes
import json
import os
import pickle
import sys
import time
from dataclasses import dataclass

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.terminal import complain


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is to be rehearsed."""

    run: ResolvedRun  # for machines with GPUs
    skew: float  # rows that this rank's experts get over an equal share
    gpu_memory: int  # bytes of a GPU
    parts: frozenset[str]  # besides steps
    guard: str | None  # a library to be loaded before torch
    hook: str = ""  # a module to import first; tests plant faults by one


def main() -> int:
    """Rehearse, with progress on stderr."""
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = pickle.load(sys.stdin.buffer)
    if question.guard:
        ctypes.CDLL(question.guard)
    from hunyuan_train.rehearsal.rank import rehearse_rank

    started = time.monotonic()

    def say(what: str) -> None:
        complain(f"rehearsal  {time.monotonic() - started:4.0f} s  {what}")

    answer = rehearse_rank(
        question.run,
        skew=question.skew,
        gpu_memory=question.gpu_memory,
        parts=question.parts,
        hook=question.hook,
        say=say,
    )
    json.dump(answer, answer_file)
    answer_file.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

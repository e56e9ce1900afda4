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

from hunyuan_train.interrupts import ending_at_ctrl_c
from hunyuan_train.rehearsal.question import Question
from hunyuan_train.terminal import complain


def main() -> int:
    """Rehearse, with progress on stderr; Ctrl-C ends it without a word."""
    with ending_at_ctrl_c():
        answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        question: Question = pickle.load(sys.stdin.buffer)
        guard = ctypes.CDLL(question.guard)
        from hunyuan_train.rehearsal.rank import rehearse_rank

        guard.replace_guard()

        started = time.monotonic()

        def say(what: str) -> None:
            complain(f"rehearsal  {time.monotonic() - started:4.0f} s  {what}")

        answer = rehearse_rank(
            question.run,
            skew=question.skew,
            gpu_memory=question.gpu_memory,
            parts=question.parts,
            micro_steps=question.micro_steps,
            hook=question.hook,
            say=say,
        )
        json.dump(answer, answer_file)
        answer_file.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

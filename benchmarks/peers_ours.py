"""Ours beside its rivals: a run as users start it, whose loop waits for its turn before each step.

    PYTHONPATH=REPOSITORY python peers_ours.py SETTINGS.json

Run by `benchmarks/peers.py`, one process for each rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from turns import Turns

from hunyuan_train.cli import main as run_command
from hunyuan_train.trainer import loop


def main(path: str) -> int:
    settings = json.loads(Path(path).read_text())
    turns = Turns(settings["address"], settings["name"], int(os.environ["RANK"]))
    take_step, losses = loop.train_step, [None]

    def in_turn(*arguments: Any, **options: Any) -> Any:
        turns.wait(losses[-1])
        result = take_step(*arguments, **options)
        losses.append(result.loss)
        return result

    loop.train_step = in_turn
    return run_command(["train", *settings["flags"]])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Fine-tune a Hunyuan MoE: `python train.py --recipe tiny`, and `--help` for every setting."""

import sys

from hunyuan_train.__main__ import run_command

if __name__ == "__main__":
    run_command(["train", *sys.argv[1:]])

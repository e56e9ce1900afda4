"""Fine-tune a Hunyuan MoE: `python train.py --recipe tiny`, and `--help` for every setting."""

import sys

from hunyuan_train.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

"""`hunyuan-train COMMAND`."""

import sys

from hunyuan_train.cli import main


def run_command() -> None:
    """Run the command that the process was started with."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run_command()

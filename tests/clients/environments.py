"""The environments of foreign clients, made by `make.sh` at their first use."""

import subprocess
from functools import cache
from pathlib import Path

MAKE = Path(__file__).with_name("make.sh")


@cache
def client_python(name: str) -> str:
    """The interpreter of a client's environment; making it takes minutes and needs the network."""
    made = subprocess.run(["bash", MAKE, name], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()

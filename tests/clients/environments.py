"""The environments of foreign clients, made by `make.sh` at their first use."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

MAKE = Path(__file__).with_name("make.sh")


@cache
def client_python(name: str) -> str:
    """The interpreter of a client's environment; making it takes minutes and needs the network."""
    made = subprocess.run(["bash", MAKE, name], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


def find_python(version: str) -> str:
    """An interpreter of a version, such as "3.12": by its name, or of pyenv; otherwise a skip."""
    versions = Path(os.environ["PYENV_ROOT"], "versions")
    for one in (f"python{version}", *map(str, versions.glob(f"{version}.*/bin/python3"))):
        try:
            subprocess.run([one, "-c", ""], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return one
    pytest.skip(f"there is no Python {version}")

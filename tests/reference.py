"""The vendor's files, beside the repository where a checkout has them; tests skip without."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def reference_file(name: str) -> Path:
    """Path of one of the vendor's files; skips the test where it is absent."""
    return _shared_file("reference", name)


def golden_file(name: str) -> Path:
    """Path of one of the token-exact vector files; skips the test where it is absent."""
    return _shared_file("golden", name)


def _shared_file(folder: str, name: str) -> Path:
    path = SHARED / folder / name
    if not path.exists():
        pytest.skip(f"../shared/{folder}/{name} is not beside this checkout")
    return path

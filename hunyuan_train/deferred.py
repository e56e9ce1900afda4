"""What a command leaves to functions whose modules import torch, which takes seconds.

So a command refuses what cannot be meant within a moment. `cli.py` has the functions by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Deferred:
    """The rest of a command, once nothing that it was given is known to be wrong."""

    name: str  # in `cli.DEFERRED`
    given: Mapping[str, Any]  # arguments of the function, which returns an exit code, or None for 0

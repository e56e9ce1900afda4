"""The random generators that a step may draw from, as bytes and back: no pickles.

Data has none: a batch is a pure function of (data, seed, position), worked out in this process.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

GENERATORS = tuple(f"random_state.{name}" for name in ("python", "numpy", "cpu", "device"))
PYTHON, NUMPY, CPU, DEVICE = GENERATORS


def read_random_states() -> dict[str, Tensor]:
    """The states of all generators: uint8 vectors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    states = {
        PYTHON: _as_bytes(random.getstate()),
        NUMPY: _as_bytes([kind, np.asarray(keys).tolist(), *rest]),
        CPU: torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states[DEVICE] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Set the generators to saved states."""
    version, internal, gauss = _from_bytes(states[PYTHON])
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = _from_bytes(states[NUMPY])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states[CPU])
    if torch.cuda.is_available() and DEVICE in states:  # a run on CPU has none
        torch.cuda.set_rng_state(states[DEVICE])


def _as_bytes(state: Sequence[Any]) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def _from_bytes(state: Tensor) -> list[Any]:
    return list(json.loads(bytes(state.tolist())))

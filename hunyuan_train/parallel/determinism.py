"""The same bits from the same numbers, each time, on GPUs too.

On a CPU they are the same without this. What libraries read from the environment is set beside it,
by `launcher/rank/environment.py`.
"""

import torch
from torch.utils import deterministic


def compute_deterministically() -> None:
    """Let torch sum in one order everywhere, or raise where it has no kernel that does."""
    torch.use_deterministic_algorithms(True)
    # It would also fill what is allocated, so that reading it too early shows: a pass over memory
    # for each tensor, and nothing here reads what it has not written.
    deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which kernel is fastest would differ from run to run

"""What the fork server imports once for all ranks of all tests."""

import gc

# The engine imports it when it checks the optimizer; it pulls in torch's compiler (8 s a rank).
from deepspeed.runtime.zero.muon import muon_optimizer

from hunyuan_train import run
from tests import engines

__all__ = ["engines", "muon_optimizer", "run"]

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

"""What the server of ranks imports once for all of them."""

import gc

# The engine imports it when it checks the optimizer; it pulls in torch's compiler (8 s a rank).
from deepspeed.runtime.zero.muon import muon_optimizer

from hunyuan_train.selftest import training

__all__ = ["muon_optimizer", "training"]

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

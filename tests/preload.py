"""What the fork server imports once for all ranks of all tests."""

import gc

import deepspeed
import peft
import transformers

# The engine imports it when it checks the optimizer; it pulls in torch's compiler (8 s a rank).
from deepspeed.runtime.zero.muon import muon_optimizer

__all__ = ["deepspeed", "muon_optimizer", "peft", "transformers"]

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

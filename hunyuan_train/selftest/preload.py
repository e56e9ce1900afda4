"""What the server of ranks imports once for all of them."""

import gc

from hunyuan_train.parallel.engine import import_muon
from hunyuan_train.selftest import training

__all__ = ["training"]

import_muon()

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

"""What the fork server imports once for all ranks of all tests."""

import gc

from hunyuan_train import run
from hunyuan_train.parallel.engine import import_muon
from tests import engines

__all__ = ["engines", "run"]

import_muon()

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

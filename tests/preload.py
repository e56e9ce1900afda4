"""What the fork server imports once for all ranks of all tests."""

import gc

from hunyuan_train import run
from hunyuan_train.parallel.engine import import_muon
from tests import engines
from tests.bfloat16 import speed_up_bfloat16

__all__ = ["engines", "products", "run"]

import_muon()
products = speed_up_bfloat16()

gc.freeze()  # the engine collects garbage often, and need not walk through all of this each time

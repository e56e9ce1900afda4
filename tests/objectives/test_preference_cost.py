"""What a step of preferences costs beside a step of fine-tuning on the same tokens."""

import time
from dataclasses import replace

import numpy as np
import pytest

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, batch_of
from tests.engines import small_engine
from tests.objectives.test_preferences import objective
from tests.ranks import run_ranks

NUM_PAIRS, LENGTH, ROUNDS = 8, 128, 5
WIDE = replace(SHAPE, hidden_size=256, intermediate_size=256, vocab_size=2048)


def measure() -> dict[str, list[float]]:
    """Seconds of processor time of each kind of step, in turn."""
    lora = LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules="all")
    engine = small_engine(stage=3, expert_size=1, optimizer="sgd", lora=lora, shape=WIDE)
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, WIDE.vocab_size, LENGTH) for _ in range(2 * NUM_PAIRS)]
    batch = batch_of(texts, [LENGTH // 4] * len(texts))
    sides = np.array([CHOSEN, REJECTED] * NUM_PAIRS, np.uint8)
    known = replace(batch, sides=sides, reference_logps=np.zeros(len(texts)))
    kinds = {
        "sft": (SFT, batch),
        "kept": (objective("dpo"), known),
        "off": (objective("dpo", reference_is_base=True), known),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(1 + ROUNDS):
        for name, (aim, row) in kinds.items():
            began = time.process_time()
            train_step(engine, aim, [row], learning_rate=1e-4)
            seconds[name].append(time.process_time() - began)
    return {name: values[1:] for name, values in seconds.items()}


@pytest.mark.slow
def test_a_step_of_preferences_is_nearly_as_fast_as_one_of_fine_tuning() -> None:
    [seconds] = run_ranks(measure, 1)
    best = {name: min(values) for name, values in seconds.items()}
    print(best)  # noqa: T201
    assert best["sft"] / best["kept"] >= 0.9
    assert best["sft"] / best["off"] >= 0.7

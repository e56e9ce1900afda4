"""Adapters trained by plain PEFT, which those of the engine are compared with."""

from collections.abc import Iterator
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

from hunyuan_train.parallel.optimizer import decay_groups
from tests.batches import global_batch, plain_loss
from tests.engines import WEIGHT_DECAY

RATE = 0.5  # of SGD


def train_with_peft(
    plain: nn.Module, folder: Path, num_steps: int
) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each step, and the adapters after the last."""
    losses, adapters = zip(*steps_of_peft(plain, folder, num_steps), strict=True)
    return list(losses), adapters[-1]


def steps_of_peft(
    plain: nn.Module, folder: Path, num_steps: int
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Train adapters of a folder on a plain model, one document at a time, in this process.

    Yields:
        of each step the loss, and copies of the adapters after it, as PEFT names them.
    """
    model = peft.PeftModel.from_pretrained(plain, folder, is_trainable=True)
    optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=RATE)
    for step in range(num_steps):
        loss = plain_loss(model, global_batch(step, 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        adapters = peft.get_peft_model_state_dict(model)
        yield loss.item(), {name: values.clone() for name, values in adapters.items()}

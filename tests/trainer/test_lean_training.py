"""A model trained with lean ends where one trained with float32 AdamW does."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hunyuan_train.model.build import build_model
from hunyuan_train.model.presets import TINY
from hunyuan_train.model.shape import ModelShape
from hunyuan_train.trainer.lean import LeanAdamW

SHAPE = replace(
    TINY,
    vocab_size=128,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_experts=8,
    moe_topk=2,
)
NUM_STEPS, LAST_STEPS = 300, 20
RATE, WEIGHT_DECAY, MAX_NORM = 3e-3, 0.01, 1.0


def make_batches(num_steps: int, shape: ModelShape) -> Tensor:
    """Walks on a random graph, fresh at every step: [steps, 8 rows, 33 tokens].

    Each token has four successors, so that a good model's loss is that of a choice of four.
    """
    generator = torch.Generator().manual_seed(0)
    size = (shape.vocab_size, 4)
    successors = torch.randint(0, shape.vocab_size, size, generator=generator)
    choices = torch.randint(0, 4, (num_steps, 8, 32), generator=generator)
    tokens = [torch.randint(0, shape.vocab_size, (num_steps, 8), generator=generator)]
    for position in range(32):
        tokens.append(successors[tokens[-1], choices[:, :, position]])
    return torch.stack(tokens, dim=-1)


def new_model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(SHAPE, attention="eager", attention_dropout=0.0)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.05)
    return model


class LeanRun:
    """What the engine does with lean: bf16 weights, float32 masters of vectors and routers."""

    def __init__(self, model: nn.Module) -> None:
        model.bfloat16()
        self.pairs = []
        groups = []
        for name, parameter in model.named_parameters():
            is_exact = parameter.ndim < 2 or ".gate.wg." in name
            flat = parameter.data.view(-1)
            master = nn.Parameter(flat.float() if is_exact else flat)
            self.pairs.append((parameter, master))
            decay = WEIGHT_DECAY if parameter.ndim >= 2 else 0.0
            groups.append({"params": [master], "weight_decay": decay, "key": name})
        self.optimizer = LeanAdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)

    def step(self) -> None:
        for parameter, master in self.pairs:
            master.grad = parameter.grad.view(-1).to(master.dtype)
        self.optimizer.step()
        for parameter, master in self.pairs:
            parameter.data.view(-1).copy_(master.data)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [one for one in model.parameters() if one.ndim >= 2]
    vectors = [one for one in model.parameters() if one.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))


def train(*, is_lean: bool) -> list[float]:
    model = new_model()
    stepper = LeanRun(model) if is_lean else adamw(model)
    losses = []
    for tokens in make_batches(NUM_STEPS, SHAPE):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        stepper.step()
        losses.append(loss.item())
    return losses


def test_the_loss_after_300_steps_is_within_one_percent_of_adamws() -> None:
    adamw_losses, lean_losses = train(is_lean=False), train(is_lean=True)
    first, last = adamw_losses[0], sum(adamw_losses[-LAST_STEPS:]) / LAST_STEPS
    assert last < 0.5 * first, "the run must have learned something"
    lean_last = sum(lean_losses[-LAST_STEPS:]) / LAST_STEPS
    assert lean_last == pytest.approx(last, rel=0.01)

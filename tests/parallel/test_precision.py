"""What stays float32 in a bfloat16 run: rope, routers and what the optimizer keeps of them."""

import pytest
import torch
from torch import Tensor

from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.routers import pinned_routers
from hunyuan_train.parallel.zero import read_state, trained_shards
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch, plain_model
from tests.engines import my_share, router_terms, small_engine
from tests.ranks import run_together


def train_in_bfloat16(stage: int, expert_size: int) -> dict[str, object]:
    engine = small_engine(stage=stage, expert_size=expert_size, is_bf16=True)
    terms = router_terms(engine, 0.0, 0.0)
    start = [linear.float32_weight.clone() for linear in pinned_routers(engine.module)]
    losses = []
    for step in range(4):
        batches = my_share(global_batch(step, 2))
        losses.append(train_step(engine, SFT, batches, learning_rate=1e-3, routers=terms).loss)
        if step == 0:
            load = terms.watch.take_load()
    masters = {
        shard.name: read_state(engine, shard, MASTER).clone()
        for shard in trained_shards(engine.module)
        if "gate.w" in shard.name
    }
    end = {
        name: module.float32_weight
        for name, module in engine.module.named_modules()
        if "float32_weight" in dict(module.named_buffers(recurse=False))
    }
    return {
        "rope": engine.module.model.rotary_emb.inv_freq,
        "dtype": next(engine.module.parameters()).dtype,
        "start": start,
        "losses": losses,
        "load": load,
        "masters": masters,
        "end": end,
    }


SPLITS = ((3, 2), (3, 0), (2, 0))  # ZeRO stage, ranks that share one set of experts


@pytest.mark.parametrize(("stage", "expert_size"), SPLITS)
def test_routers_and_rope_stay_float32(stage: int, expert_size: int) -> None:
    ranks = run_together(train_in_bfloat16, 2, SPLITS)[stage, expert_size]
    plain = plain_model()
    plain_losses, plain_load = train_plain_with_exact_routers()
    for rank in ranks:
        assert rank["dtype"] == torch.bfloat16
        assert torch.equal(rank["rope"], plain.model.rotary_emb.inv_freq)
        for layer, exact in zip(plain.model.layers, rank["start"], strict=True):
            assert torch.equal(exact, layer.mlp.gate.wg.weight)
        assert rank["losses"] == pytest.approx(plain_losses, abs=2e-2)
    # Attention sums in another order, so a token at a tie may move: one slot of 552 was seen.
    moved = (sum(rank["load"] for rank in ranks)[0] - plain_load).abs().sum() / 2
    assert moved <= 0.005 * plain_load.sum()
    for name, exact in ranks[0]["end"].items():
        masters = [
            rank["masters"][f"{name}.weight"]
            for rank in ranks
            if f"{name}.weight" in rank["masters"]
        ]
        kept = torch.cat([part.flatten() for part in masters])
        assert torch.equal(kept, exact.flatten()), name
        assert not torch.equal(exact, exact.bfloat16().float()), name


def train_plain_with_exact_routers() -> tuple[list[float], Tensor]:
    """bfloat16 weights with float32 routers and a float32 master copy, in one process."""
    master = plain_model()
    half = plain_model().bfloat16()
    half.model.rotary_emb = master.model.rotary_emb
    counts = torch.zeros(SHAPE.num_experts, dtype=torch.int64)
    is_first = True

    def count(_: object, __: object, output: tuple[Tensor, ...]) -> None:
        if is_first:
            counts.add_(torch.bincount(output[2].flatten(), minlength=SHAPE.num_experts))

    half.model.layers[0].mlp.gate.register_forward_hook(count)
    pairs = list(zip(master.parameters(), half.parameters(), strict=True))
    groups = [
        {"params": [p for p in master.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in master.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    losses = []
    for step in range(4):
        for layer, exact in zip(half.model.layers, master.model.layers, strict=True):
            layer.mlp.gate.wg.weight.data = exact.mlp.gate.wg.weight.detach().clone()
        loss = torch.zeros(())
        batches = global_batch(step, 2)
        weight = sum(float(batch.loss_weights.sum()) for batch in batches)
        for batch in batches:
            for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
                ids = torch.from_numpy(batch.input_ids[start:stop])[None]
                labels = torch.from_numpy(batch.labels[start:stop])
                logits = half(input_ids=ids).logits[0].float()
                loss = loss + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (loss / weight).backward()
        is_first = False
        for exact, rounded in pairs:
            exact.grad = rounded.grad.float()
            rounded.grad = None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for exact, rounded in pairs:
                rounded.copy_(exact)
        losses.append((loss / weight).item())
    return losses, counts

"""Preference objectives on ranks: pairs dealt unevenly, a rank without any, a reference inside."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.data.batches.loader import Batch, join_samples
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.objectives.preferences import make_preference_objective
from hunyuan_train.selftest.reference import trained_gradients
from hunyuan_train.selftest.training import kept_gradients
from hunyuan_train.trainer.step import accumulate_gradients, update_weights
from tests.batches import SHAPE, batch_of, plain_model
from tests.engines import end_engines, small_engine
from tests.ranks import run_ranks

LENGTHS = ((12, 30), (7, 21), (16, 9), (25, 14))  # of chosen and rejected, prompts included
PROMPT = 4
BETA = 0.5
KTO_WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
Kept = dict[tuple[str, int], Tensor]


def documents(seed: int = 5) -> list[np.ndarray]:
    """Chosen and rejected of each pair, which share their prompt."""
    draw = np.random.default_rng(seed)
    found = []
    for lengths in LENGTHS:
        prompt = draw.integers(0, SHAPE.vocab_size, PROMPT + 1)
        for length in lengths:
            answer = draw.integers(0, SHAPE.vocab_size, length - PROMPT - 1)
            found.append(np.concatenate([prompt, answer]))
    return found


def references(seed: int = 6) -> np.ndarray:
    """Near to what the untrained model says, so that no loss is at its end."""
    lengths = np.array(LENGTHS).flatten() - PROMPT - 1
    noise = np.random.default_rng(seed).uniform(-1.5, 1.5, len(lengths))
    return -np.log(SHAPE.vocab_size) * lengths + noise


def make_batch(pairs: slice, *, with_reference: bool = True) -> Batch:
    """Some pairs in one row; the mode of every second one is slow."""
    samples = slice(2 * pairs.start, 2 * pairs.stop)
    number = pairs.stop - pairs.start
    modes = [MODES.index("slow" if (pairs.start + one) % 2 else "fast") for one in range(number)]
    batch = batch_of(documents()[samples], [PROMPT] * 2 * number)
    other = batch_of(documents(seed=7)[samples], [PROMPT] * 2 * number)
    known = references()[samples]
    other = replace(other, reference_logps=known - 1 if with_reference else None)
    return replace(
        batch,
        sides=np.array([CHOSEN, REJECTED] * number, np.uint8),
        modes=np.repeat(modes, 2).astype(np.uint8),
        reference_logps=known if with_reference else None,
        mismatched=other,
    )


def no_batch() -> Batch:
    empty = join_samples([], modes=[], sample_ids=[])
    none = np.zeros(len(empty.sample_ids))
    return replace(empty, mismatched=replace(empty, reference_logps=none))


def my_batches(rank: int, *, with_reference: bool = True) -> list[Batch]:
    """Three pairs for the first rank, one for the second, whose other batch is empty."""
    if rank:
        return [make_batch(slice(3, 4), with_reference=with_reference), no_batch()]
    shares = (slice(0, 1), slice(1, 3))
    return [make_batch(share, with_reference=with_reference) for share in shares]


def objective(name: str, *, reference_is_base: bool = False) -> Objective:
    weights = KTO_WEIGHTS if name == "kto" else {}
    has_extra = name == "dpo" and not reference_is_base
    extra = {"rpo_alpha": 0.7, "label_smoothing": 0.1} if has_extra else {}
    config = PreferenceConfig(objective=name, beta=BETA, **weights, **extra)
    return make_preference_objective(config, group=None, reference_is_base=reference_is_base)


@dataclass
class Seen:
    """What a rank saw."""

    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    gradients: dict[str, Kept] = field(default_factory=dict)
    references: list[list[float]] = field(default_factory=list)


def watch(rank_lora: LoraConfig) -> Seen:
    engine, seen = small_engine(stage=3, expert_size=2, optimizer="sgd", max_grad_norm=0.0), Seen()
    rank = torch.distributed.get_rank()
    for name in ("dpo", "ipo", "simpo", "orpo", "kto"):
        found = accumulate_gradients(engine, objective(name), my_batches(rank))
        seen.losses[name] = {"loss": found.loss, **found.by_group}
        seen.gradients[name] = kept_gradients(engine.module)
        update_weights(engine, 0.0, is_skipped=True)
    end_engines()
    engine = small_engine(stage=3, expert_size=2, optimizer="sgd", lora=rank_lora)
    batches = my_batches(rank, with_reference=False)
    for step in range(3):
        inside = objective("dpo", reference_is_base=True)
        prepared = inside.prepare(engine, batches)
        logps = [one.reference_logps for one in prepared]
        seen.references.append(np.concatenate([one for one in logps if one is not None]).tolist())
        found = accumulate_gradients(engine, inside, batches)
        seen.losses[f"inside {step}"] = {"loss": found.loss, **found.by_group}
        update_weights(engine, 0.05, is_skipped=False)
    return seen


@pytest.fixture(scope="module")
def ranks() -> list[Seen]:
    lora = LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules="all")
    return run_ranks(watch, 2, lora)


def plain_logps(model: nn.Module, texts: list[np.ndarray]) -> Tensor:
    sums = []
    for text in texts:
        ids = torch.from_numpy(text.astype(np.int64))
        logps = log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
        sums.append(logps[PROMPT:-1].gather(1, ids[PROMPT + 1 :, None]).sum())
    return torch.stack(sums)


def expected_loss(name: str, model: nn.Module) -> Tensor:
    """The mean over all pairs, or answers, of one plain process."""
    logps, known = plain_logps(model, documents()), torch.from_numpy(references())
    ratios = BETA * (logps - known)
    if name == "kto":
        kl = (plain_logps(model, documents(seed=7)) - (known - 1)).mean().clamp(min=0).detach()
        assert kl > 0.1
        good = 1 - torch.sigmoid(ratios[::2] - BETA * kl)
        bad = 1 - torch.sigmoid(BETA * kl - ratios[1::2])
        weights = KTO_WEIGHTS.values()
        return torch.cat([w * one for w, one in zip(weights, (good, bad), strict=True)]).mean()
    margins = ratios[::2] - ratios[1::2]
    chosen_tokens = sum(chosen - PROMPT - 1 for chosen, _ in LENGTHS)
    nll = -logps[::2].sum() / chosen_tokens
    return (-0.9 * logsigmoid(margins) - 0.1 * logsigmoid(-margins)).mean() + 0.7 * nll


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_losses_and_gradients_are_those_of_one_plain_process(name: str, ranks: list[Seen]) -> None:
    model = plain_model()
    loss = expected_loss(name, model)
    loss.backward()
    expected = {key: torch.from_numpy(one) for key, one in trained_gradients(model).items()}
    for seen in ranks:
        assert seen.losses[name]["loss"] == pytest.approx(loss.item(), abs=2e-5)
        for (tensor, start), values in seen.gradients[name].items():
            whole = expected[tensor, 0]
            part = whole[start : start + len(values)]
            scale = max(float(whole.abs().max()), 1e-3)
            assert torch.allclose(values, part.float(), atol=2e-4 * scale), tensor


def test_figures_are_means_over_all_pairs_and_over_those_of_each_mode(ranks: list[Seen]) -> None:
    logps, known = plain_logps(plain_model(), documents()).detach().numpy(), references()
    rewards = BETA * (logps - known)
    chosen, rejected = rewards[::2], rewards[1::2]
    slow = np.array([False, True, False, True])
    for seen in ranks:
        found = seen.losses["dpo"]
        assert found["rewards/chosen"] == pytest.approx(chosen.mean(), abs=1e-3)
        assert found["rewards/margins"] == pytest.approx((chosen - rejected).mean(), abs=1e-3)
        assert found["rewards/accuracies"] == pytest.approx((chosen > rejected).mean())
        assert found["rewards/margins_slow"] == pytest.approx(
            (chosen - rejected)[slow].mean(), abs=1e-3
        )
        assert found["logps/rejected_fast"] == pytest.approx(logps[1::2][~slow].mean(), abs=1e-3)
        assert found["lengths/chosen"] == np.mean([one - PROMPT - 1 for one, _ in LENGTHS])
        kto = seen.losses["kto"]
        assert kto["rewards/margins"] == pytest.approx((chosen - rejected).mean(), abs=1e-3)
        for name in ("ipo", "simpo", "orpo"):
            assert np.isfinite(list(seen.losses[name].values())).all()


def test_the_reference_is_the_model_with_its_adapters_off_however_they_are_trained(
    ranks: list[Seen],
) -> None:
    base = plain_logps(plain_model(), documents()).detach().numpy()
    for rank, seen in enumerate(ranks):
        expected = base[6:] if rank else base[:6]
        for found in seen.references:
            assert found[: len(expected)] == pytest.approx(expected, abs=2e-3)
        first, *_, last = (seen.losses[f"inside {step}"] for step in range(3))
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)  # adapters begin as nothing
        assert abs(first["rewards/margins"]) < 1e-4
        assert last["loss"] < first["loss"] - 1e-3
        assert last["rewards/margins"] > 1e-3

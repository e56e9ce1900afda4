"""Quantised frozen experts train as the plain model does with the weights that their codes mean."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from hunyuan_train.config.schema import LoraConfig, ModelConfig
from hunyuan_train.data.batches.loader import Position
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model import expert_formats
from hunyuan_train.model.compressed_values import decode, encode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.expert_cache import NUM_COMPARED
from hunyuan_train.model.expert_codes import QuantisedOnReading
from hunyuan_train.model.expert_formats import GENTLEST_FIRST, scheme_of
from hunyuan_train.model.weights import SafetensorsFolder, WeightSource
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.quantised_experts import (
    CompressedWeights,
    FrozenProduct,
    QuantisedExperts,
    dequantised_experts,
    local_experts,
)
from hunyuan_train.selftest import reference
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, WEIGHTS, global_batch
from tests.engines import my_share, resume, save_checkpoint, small_engine
from tests.plain_adapters import RATE, steps_of_peft
from tests.planner.live import LiveBytes
from tests.ranks import run_each
from tests.released import write_released

FORMS = tuple(one for one in GENTLEST_FIRST if one != "bf16")
NUM_STEPS = 5


@dataclass(frozen=True)
class Dequantised:
    """A base whose routed experts are what their codes mean."""

    source: WeightSource
    scheme: str

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        if ".experts." not in tensor.name:
            return self.source.read(tensor, start, stop)
        scheme = scheme_of(self.scheme, SHAPE)
        codes, scales = QuantisedOnReading(self.source, scheme, torch.float32).read_experts(tensor)
        return decode(codes, scales, scheme, torch.float32).flatten()[start:stop]


@dataclass
class CountingWeights:
    """A source that counts the elements that are read of each tensor."""

    source: WeightSource
    counts: Counter[str] = field(default_factory=Counter)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        self.counts[tensor.name] += stop - start
        return self.source.read(tensor, start, stop)


@dataclass(frozen=True)
class Case:
    """How experts are kept, what is adapted, and how the model is split."""

    kept: str
    targets: str
    expert_size: int
    world_size: int = 2
    piece_bytes: int = expert_formats.PIECE_BYTES

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(
            use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules=self.targets
        )

    def __str__(self) -> str:
        pieces = "" if self.piece_bytes > 1 else ", in pieces"
        return f"{self.kept}, {self.targets}, EP {self.expert_size} of {self.world_size}{pieces}"


CASES = [Case("nf4", "experts", 2), Case("int4", "all", 2, piece_bytes=1)]
TARGETS = ("attention", "experts", "all")
# Every form and target with the experts in one part, two and four; experts that several ranks have
# with adapters everywhere.
SPLITS = {(1, 1): TARGETS, (2, 2): TARGETS, (4, 4): TARGETS, (1, 2): ("all",), (2, 4): ("all",)}


def train_quantised(folder: Path, case: Case, *, is_resumed: bool = False) -> list[float]:
    """Train with SGD, whose steps show a wrong gradient scale; export before and after."""
    expert_formats.PIECE_BYTES = case.piece_bytes
    source = CountingWeights(WEIGHTS)
    engine = small_engine(
        stage=3,
        expert_size=case.expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        lora=case.lora,
        model=ModelConfig(expert_weights=case.kept),
        source=source,
    )
    # Each rank reads its own experts, once, and nothing else of them.
    read = {name: count for name, count in source.counts.items() if ".experts." in name}
    assert read == {tensor.name: tensor.numel for *_, tensor in local_experts(engine.module)}
    checkpoint = folder / "step-000003"
    state = resume(engine, checkpoint) if is_resumed else TrainerState()
    if not is_resumed:
        export_adapter(engine, folder / "before", case.lora, SHAPE, base_model="tiny")
    losses = []
    for step in range(state.step, NUM_STEPS):
        if step == 3 and not is_resumed:
            save_checkpoint(engine, TrainerState(3, Position(), 0), checkpoint)
        losses.append(
            train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=RATE).loss
        )
        if step == 0:
            export_adapter(engine, folder / "first", case.lora, SHAPE, base_model="tiny")
    export_adapter(engine, folder / "after", case.lora, SHAPE, base_model="tiny")
    return losses


Adapters = dict[str, Tensor]


@cache
def train_plainly(kept: str, targets: str, before: Path) -> tuple[list[float], list[Adapters]]:
    """What PEFT makes of dequantised experts: the loss of each step, and the adapters after it."""
    plain = reference.plain_model(SHAPE, Dequantised(WEIGHTS, kept), experts="grouped_mm")
    losses, adapters = zip(*steps_of_peft(plain, before, NUM_STEPS), strict=True)
    return list(losses), list(adapters)


def check(
    case: Case, losses: list[float], folder: Path, begun: dict[tuple[str, str], Path]
) -> None:
    """Compare with PEFT: losses, every gradient of the first step, every adapter after the last.

    Args:
        case: that was trained.
        losses: of its steps.
        folder: of its adapters.
        begun: from what adapters PEFT trains, for all splits of a form and its targets.
    """
    before = read_adapters(folder / "before")
    first = begun.setdefault((case.kept, case.targets), folder / "before")
    for name, values in read_adapters(first).items():
        assert torch.equal(before[name], values), name  # however the model is split
    expected_losses, expected = train_plainly(case.kept, case.targets, first)
    assert losses == pytest.approx(expected_losses, abs=1e-6)
    # A step of SGD is its rate times the gradient, with the same weight decay in both.
    for found, plain, most in (("first", expected[0], RATE * 1e-6), ("after", expected[-1], 5e-6)):
        adapters = read_adapters(folder / found)
        assert adapters.keys() == plain.keys()
        for name, values in adapters.items():
            assert (values - plain[name]).abs().max() < most, (found, name)
            if found == "first" and "lora_B" in name:  # which begins with 0
                assert values.abs().max() > 100 * most, name
    assert any((values - before[name]).abs().max() > 1e-3 for name, values in adapters.items())


def read_adapters(folder: Path) -> Adapters:
    return peft.load_peft_weights(folder, device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[list[float], Path]]:
    """Losses and folder of every case."""
    folders = [tmp_path_factory.mktemp("adapters") for _ in CASES]
    cases = list(zip(folders, CASES, strict=True))
    losses = [first for first, _ in run_each(train_quantised, 2, cases)]
    return dict(zip(CASES, zip(losses, folders, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapters_train_as_peft_does_on_dequantised_experts(
    trained: dict[Case, tuple[list[float], Path]], case: Case
) -> None:
    check(case, *trained[case], begun={})


@pytest.fixture(scope="module")
def begun() -> dict[tuple[str, str], Path]:
    """From what adapters PEFT has trained; all splits are compared with the same training."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(("expert_size", "world_size"), SPLITS)
def test_every_form_split_in_every_way_trains_as_peft_does(
    expert_size: int, world_size: int, tmp_path: Path, begun: dict[tuple[str, str], Path]
) -> None:
    cases = [
        Case(kept, targets, expert_size, world_size)
        for kept in FORMS
        for targets in SPLITS[expert_size, world_size]
    ]
    folders = [tmp_path / str(index) for index in range(len(cases))]
    results = run_each(train_quantised, world_size, list(zip(folders, cases, strict=True)))
    for case, folder, losses in zip(cases, folders, results, strict=True):
        check(case, losses[0], folder, begun)


@cache
def weights_of(kept: str) -> CompressedWeights:
    """Four experts of 256 x 384 each, whose values are of many sizes."""
    scheme = scheme_of(kept, SHAPE)
    weights = CompressedWeights((4, 256, 384), scheme)
    generator = torch.Generator().manual_seed(3)
    for expert in range(4):
        values = torch.randn(256, 384, generator=generator) * 10.0**-expert
        source = QuantisedOnReading(OneTensor(values), scheme, torch.float32)
        tensor = StoredTensor("experts", (256, 384), Kind.EXPERT)
        weights.put(expert, *source.read_experts(tensor), torch.device("cpu"))
    return weights


@dataclass(frozen=True)
class OneTensor:
    """A source of one tensor."""

    values: Tensor

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        return self.values.flatten()[start:stop]


@pytest.mark.parametrize("kept", FORMS)
def test_pieces_give_the_product_of_the_whole_and_its_gradient(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(kept)
    whole = weights.rows(0, 256, torch.float64)
    ends = torch.tensor([3, 3, 10, 12], dtype=torch.int32)  # the second expert has no tokens
    rows = torch.randn(12, 384, generator=torch.Generator().manual_seed(4))
    gradient = torch.randn(12, 256, generator=torch.Generator().manual_seed(5))
    expert = torch.bucketize(torch.arange(12), ends, right=True)
    expected = torch.einsum("ni,noi->no", rows.double(), whole[expert])
    expected_gradient = torch.einsum("no,noi->ni", gradient.double(), whole[expert])
    for piece_bytes in (1, 2**29):
        monkeypatch.setattr(expert_formats, "PIECE_BYTES", piece_bytes)
        leaf = rows.clone().requires_grad_()
        product = FrozenProduct.apply(leaf, weights, ends)
        product.backward(gradient)
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(leaf.grad.double(), expected_gradient, rtol=1e-5, atol=1e-5)


def test_adapted_experts_let_go_of_what_no_gradient_needs() -> None:
    rows, hidden, width, rank = 512, 64, 256, 8
    numbers = {"activation_alpha": 1.0, "activation_limit": 0.0}
    experts = QuantisedExperts(
        hidden, width, 2, scheme=Scheme("channel"), rank=rank, scaling=0.5, dtype=torch.float32,
        activation="swiglu", **numbers,
    )  # fmt: skip
    for _, weights in experts.projections():
        for expert in range(2):
            values = torch.randn(weights.shape_EOI[1:])
            weights.put(expert, *encode(values, weights.scheme), torch.device("cpu"))
    inputs = torch.randn(rows, hidden, requires_grad=True)
    counts = torch.tensor([300, 212], dtype=torch.int32)
    with LiveBytes() as live:
        output = experts(inputs, counts)
    # Gate, its SiLU, up, what goes down, and two results: no 2 * width of the adapters' own.
    held = 4 * rows * (4 * width + 2 * rank + 2 * hidden)
    assert output.shape == inputs.shape
    assert held <= live.peak < held + 4 * rows * width


def resume_quantised(folder: Path, case: Case) -> list[float]:
    return train_quantised(folder, case, is_resumed=True)


def test_a_resumed_run_goes_on_bit_for_bit_and_its_checkpoint_holds_adapters_only(
    trained: dict[Case, tuple[list[float], Path]], tmp_path: Path
) -> None:
    case = CASES[1]
    losses, folder = trained[case]
    (tmp_path / "step-000003").symlink_to(folder / "step-000003")
    [[later, _]] = run_each(resume_quantised, 2, [(tmp_path, case)])
    assert later == losses[3:]
    size = sum(file.stat().st_size for file in (folder / "step-000003").iterdir())
    adapters = (folder / "after/adapter_model.safetensors").stat().st_size
    assert size < 3 * adapters  # master weights, no states of SGD, and what describes them
    whole = peft.load_peft_weights(folder / "after", device="cpu")
    resumed = peft.load_peft_weights(tmp_path / "after", device="cpu")
    assert whole.keys() == resumed.keys()
    for name, values in whole.items():
        assert torch.equal(resumed[name], values), name


def start_with_cache(folder: Path, kept: str) -> tuple[float, dict[str, Tensor], int]:
    """Loss of a step, this rank's experts, and how often one was read of the base."""
    source = CountingWeights(SafetensorsFolder.open(folder / "base", SHAPE))
    model = ModelConfig(
        expert_weights=kept,
        cache_expert_weights=True,
        model_name_or_path=str(folder / "base"),
    )
    engine = small_engine(
        stage=3,
        expert_size=2,
        lora=Case(kept, "all", 2).lora,
        model=model,
        source=source,
        cache_dir=folder / "cache",
    )
    loss = train_step(engine, SFT, my_share(global_batch(0, 4)), learning_rate=RATE).loss
    experts = {tensor.name: values for tensor, values in dequantised_experts(engine.module)}
    read = {name for name in source.counts if ".experts." in name}
    return loss, experts, len(read & experts.keys())


@pytest.mark.slow
def test_a_start_from_cached_experts_is_the_same_start(tmp_path: Path) -> None:
    write_released(tmp_path / "base", shape=SHAPE)
    first, second = run_each(start_with_cache, 2, [(tmp_path, "nf4")] * 2)
    assert len(list(tmp_path.glob("cache/*.experts/*.safetensors"))) == 2  # one of each rank
    for made, kept in zip(first, second, strict=True):
        assert kept[0] == made[0]
        assert kept[1].keys() == made[1].keys()
        assert all(torch.equal(values, made[1][name]) for name, values in kept[1].items())
        assert made[2] == len(made[1])
        assert kept[2] <= NUM_COMPARED

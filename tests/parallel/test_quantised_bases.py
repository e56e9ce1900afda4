"""Bases that are quantised already are trained on the numbers that their files mean."""

import itertools
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hunyuan_train.config.schema import LoraConfig, ModelConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.compression_scheme import is_compressed
from hunyuan_train.model.find_model import open_base
from hunyuan_train.objectives.log_probabilities import judge
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.quantised_experts import dequantised_experts
from hunyuan_train.selftest import reference
from hunyuan_train.serve.adapter import put_adapter
from hunyuan_train.serve.base_model import load_base
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import my_share, small_engine
from tests.plain_adapters import RATE, train_with_peft
from tests.quantised_bases import GPTQ, LAYOUTS, plain_values, write_base
from tests.ranks import run_each

LORA = LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16, lora_target_modules="all")
NUM_STEPS = 3
JUDGED = global_batch(NUM_STEPS, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_base_is_read_as_its_format_defines_it(tmp_path: Path, layout: str) -> None:
    write_base(tmp_path, layout)
    shape = resolve_base(str(tmp_path / "base"))
    source = open_base(tmp_path / "base", shape)
    stored = load_file(tmp_path / "base/model.safetensors")
    compressed = [one for one in released_tensors(shape).values() if is_compressed(one)]
    assert len(compressed) > 40
    for tensor in compressed:
        expected = plain_values(layout, tensor.name, stored)
        found = source.read(tensor, 0, tensor.numel)
        assert torch.equal(found.view(tensor.shape), expected), tensor.name
        start, stop = tensor.numel // 3, tensor.numel // 2
        assert torch.equal(source.read(tensor, start, stop), expected.flatten()[start:stop])


def train_base(
    folder: Path, expert_size: int
) -> tuple[list[float], dict[str, Tensor], list[np.ndarray]]:
    """Train adapters on a base.

    Returns:
        losses, this rank's experts as they compute, and of its share of `JUDGED` the
        log-probability of every document.
    """
    shape = resolve_base(str(folder / "base"))
    engine = small_engine(
        stage=3,
        expert_size=expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        lora=LORA,
        model=ModelConfig(expert_weights="base"),
        shape=shape,
        source=open_base(folder / "base", shape),
    )
    export_adapter(engine, folder / "before", LORA, shape, base_model="base")
    losses = [
        train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=RATE).loss
        for step in range(NUM_STEPS)
    ]
    export_adapter(engine, folder / "after", LORA, shape, base_model="base")
    experts = {tensor.name: values for tensor, values in dequantised_experts(engine.module)}
    return losses, experts, judge(engine, my_share(JUDGED), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list]]:
    """Folder, and what each rank returned, of each layout."""
    folders = {layout: tmp_path_factory.mktemp("base") for layout in LAYOUTS}
    for layout, folder in folders.items():
        write_base(folder, layout)
    results = run_each(train_base, 2, [(folder, 2) for folder in folders.values()])
    return dict(zip(folders, zip(folders.values(), results, strict=True), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_train_on_a_quantised_base_as_in_plain_peft(
    trained: dict[str, tuple[Path, list]], layout: str
) -> None:
    folder, ranks = trained[layout]
    shape = resolve_base(str(folder / "base"))
    plain = reference.plain_model(
        shape, open_base(folder / "base", shape), experts="grouped_mm"
    ).float()
    losses, adapters = train_with_peft(plain, folder / "before", NUM_STEPS)
    assert ranks[0][0] == pytest.approx(losses, abs=2e-6)
    after = peft.load_peft_weights(folder / "after", device="cpu")
    for name, values in adapters.items():
        assert (after[name] - values).abs().max() < 5e-6, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_has_its_own_experts_with_the_numbers_of_the_files(
    trained: dict[str, tuple[Path, list]], layout: str
) -> None:
    folder, ranks = trained[layout]
    stored = load_file(folder / "base/model.safetensors")
    first, second = (experts for _, experts, _ in ranks)
    assert not first.keys() & second.keys()
    assert len(first) == len(second) == 2 * 3 * 4  # layers, projections, half of the experts
    for name, values in {**first, **second}.items():
        assert torch.equal(values, plain_values(layout, name, stored).float().flatten()), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_answers_gives_the_log_probabilities_of_the_run(
    trained: dict[str, tuple[Path, list]], layout: str
) -> None:
    folder, ranks = trained[layout]
    base = folder / "base"
    shape, dtype = resolve_base(str(base)), torch.float32  # of the run
    adapter = folder / "after"
    model = put_adapter(load_base(base, shape, adapter=adapter, dtype=dtype), adapter)
    run = [logps for _, _, logps in ranks]
    for batch, expected in zip(JUDGED, itertools.chain(*run), strict=True):
        bounds = zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
        found = [sum_answer(model, batch, start, stop) for start, stop in bounds]
        assert found == pytest.approx(expected, abs=1e-4)  # of sums over 20 tokens


@torch.no_grad()
def sum_answer(model: nn.Module, batch: Batch, start: int, stop: int) -> float:
    """Log-probability of what one document of a batch has labels for."""
    ids, labels = (torch.from_numpy(row[start:stop]) for row in (batch.input_ids, batch.labels))
    logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    taught = labels >= 0
    return logps[taught].gather(1, labels[taught, None]).double().sum().item()


def test_bad_quantised_bases_are_refused_in_a_paragraph(tmp_path: Path) -> None:
    write_base(tmp_path / "act", "GPTQ", stated=GPTQ | {"desc_act": True})
    with pytest.raises(ConfigError, match=r"^\S+ has desc_act true.*desc_act false"):
        resolve_base(str(tmp_path / "act/base"))
    write_base(tmp_path / "size", "GPTQ", stated=GPTQ | {"group_size": -1})
    with pytest.raises(ConfigError, match="gptq with group_size -1"):
        resolve_base(str(tmp_path / "size/base"))
    write_base(tmp_path / "wide", "GPTQ", stated=GPTQ | {"group_size": 32})
    shape = resolve_base(str(tmp_path / "wide/base"))
    with pytest.raises(ConfigError, match="groups of 32, which do not divide the 48 inputs"):
        open_base(tmp_path / "wide/base", shape)
    write_base(tmp_path / "awq", "GPTQ", stated={"quant_method": "awq"})
    with pytest.raises(ConfigError, match="quant_method awq"):
        resolve_base(str(tmp_path / "awq/base"))
    for name, options, words in (
        ("zero", {"zero": 9}, "sym true"),
        ("order", {"act_order": True}, "act-order"),
    ):
        write_base(tmp_path / name, "GPTQ", **options)
        shape = resolve_base(str(tmp_path / name / "base"))
        source = open_base(tmp_path / name / "base", shape)
        tensor = next(one for one in released_tensors(shape).values() if ".experts." in one.name)
        with pytest.raises(ConfigError, match=words):
            source.read_experts(tensor)


def test_a_base_without_scales_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path, "FP8 by tensor")
    file = tmp_path / "base/model.safetensors"
    stored = load_file(file)
    gone = next(name for name in stored if ".experts.0." in name and name.endswith("weight_scale"))
    del stored[gone]
    save_file(stored, file, metadata={"format": "pt"})
    shape = resolve_base(str(tmp_path / "base"))
    with pytest.raises(ConfigError, match=rf"{gone}.*missing"):
        open_base(tmp_path / "base", shape)

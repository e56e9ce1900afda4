"""The exported folder is the trained model: bit for bit, and in what Transformers computes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, load_peft_weights
from torch import Tensor

from hunyuan_train.config.load import load_config
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export import huggingface_folder as release
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.export.check import check_adapter, check_model, load_source, make_prompts
from hunyuan_train.export.check import plain_losses as losses_of_prompts
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model, read_prompts
from hunyuan_train.export.huggingface_folder import Release, describe_release, split_into_files
from hunyuan_train.export.manifest import read_base
from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.shipped import TINY_TOKENIZER
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import kept_weights, my_share, save_checkpoint, small_engine
from tests.ranks import run_ranks
from tests.released import ROUTER, SHAPE, make_run, read_released, write_released

Kept = dict[tuple[str, int], Tensor]


def train_and_export(
    base: Path, checkpoint: Path, live: Path, stage: int, expert_size: int, is_bf16: bool
) -> Kept:
    """Take two steps, save, export; return the weights kept here."""
    source = SafetensorsFolder.open(base, SHAPE)
    engine = small_engine(
        stage=stage, expert_size=expert_size, is_bf16=is_bf16, shape=SHAPE, source=source
    )
    for step in range(2):
        train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=1e-2)
    save_checkpoint(engine, TrainerState(), checkpoint)
    config = load_config(["--config", str(checkpoint.parents[1] / "config.yaml")])
    described = describe_release(config, SHAPE, source)
    check = partial(check_model, read_prompts(engine, SHAPE, written_dtype=described.dtype))
    export_model(engine, live, described, source, check=check)
    return kept_weights(engine.module)


@pytest.mark.parametrize(
    ("world_size", "stage", "expert_size", "dtype", "is_bf16"),
    [
        pytest.param(1, 3, 1, torch.float32, False, id="1 rank"),
        pytest.param(2, 3, 2, torch.float32, False, id="2 ranks, experts split"),
        pytest.param(2, 3, 2, torch.bfloat16, True, id="2 ranks, experts split, bf16"),
        pytest.param(2, 3, 0, torch.bfloat16, False, id="2 ranks, rounded to the base's bf16"),
        pytest.param(2, 2, 0, torch.float32, False, id="2 ranks, ZeRO-2"),
        pytest.param(4, 3, 2, torch.float32, False, id="4 ranks, experts over 2, twice"),
    ],
)  # fmt: skip
def test_export_is_the_trained_model(
    tmp_path: Path, world_size: int, stage: int, expert_size: int, dtype: torch.dtype, is_bf16: bool
) -> None:
    base, live = tmp_path / "base", tmp_path / "live"
    before = write_released(base, dtype=dtype)
    checkpoint = make_run(tmp_path / "run", base)
    ranks = run_ranks(
        train_and_export, world_size, base, checkpoint, live, stage, expert_size, is_bf16
    )
    exported = read_released(live)
    assert exported.keys() == before.keys()
    for kept in ranks:
        for (name, start), values in kept.items():
            written = exported[name].flatten()[start : start + len(values)]
            if ROUTER not in name:  # written in float32, which the engine keeps besides
                assert torch.equal(written, values.to(dtype)), name
    for name, values in exported.items():
        assert values.dtype == before[name].dtype
        assert not torch.equal(values, before[name]), name
        # Trained routers are written as the optimizer has them, not as a bfloat16 run rounds them.
        assert ROUTER not in name or not torch.equal(values, values.bfloat16().float()), name
    export_stopped_run(open_stopped_run(checkpoint, {}), tmp_path / "later")
    assert (tmp_path / "later/SHA256SUMS").read_text() == (live / "SHA256SUMS").read_text()
    assert read_base(live) == read_base(tmp_path / "later") == str(base)
    assert not list(tmp_path.glob("*.incomplete"))


def export_under_a_check_that_fails(base: Path, live: Path) -> None:
    source = SafetensorsFolder.open(base, SHAPE)
    engine = small_engine(stage=3, expert_size=1, shape=SHAPE, source=source)
    companions = (base, TINY_TOKENIZER)
    described = Release(shape=SHAPE, dtype=torch.bfloat16, companions=companions, base=base)
    trained = read_prompts(engine, SHAPE, written_dtype=described.dtype)
    trained.losses.add_(0.1)
    with pytest.raises(ServeError, match="does not compute what was trained"):
        export_model(engine, live, described, source, check=partial(check_model, trained))


def test_files_that_compute_something_else_are_not_published(tmp_path: Path) -> None:
    base, live = tmp_path / "base", tmp_path / "live"
    write_released(base)
    run_ranks(export_under_a_check_that_fails, 1, base, live)
    assert not live.exists()


def test_released_model_is_written_in_files_of_five_gigabytes() -> None:
    tensors = list(released_tensors(A13B).values())
    files = split_into_files(tensors, torch.bfloat16)
    assert [tensor for file in files for tensor in file] == tensors
    sizes = [sum(release.stored_bytes(one, torch.bfloat16) for one in file) for file in files]
    assert max(sizes) <= 5 * 10**9 - 10**6
    assert len(files) == 33


def train_and_export_adapter(
    base: Path, checkpoint: Path, live: Path, lora: LoraConfig, expert_size: int
) -> Tensor:
    source = SafetensorsFolder.open(base, SHAPE)
    engine = small_engine(stage=3, expert_size=expert_size, shape=SHAPE, source=source, lora=lora)
    for step in range(3):
        train_step(engine, SFT, my_share(global_batch(step, 4)), learning_rate=1e-2)
    save_checkpoint(engine, TrainerState(), checkpoint)
    trained = read_prompts(engine, SHAPE, written_dtype=torch.float32)
    check = partial(check_adapter, trained, source)
    export_adapter(engine, live, lora, SHAPE, base_model=str(base), check=check)
    return trained.losses


MODULES_OF_PRESET = {
    "attention": {f"self_attn.{name}_proj" for name in "qkvo"},
    "shared_mlp": {f"mlp.shared_mlp.{name}_proj" for name in ("gate", "up", "down")},
    "experts": {"mlp.experts", "mlp.experts.base_layer"},  # PEFT wraps one around the other
    "router": {"mlp.gate.wg"},
    "q_proj": {"self_attn.q_proj"},
    "v_proj": {"self_attn.v_proj"},
}


@pytest.mark.parametrize(
    ("targets", "expert_size"),
    [
        ("attention", 0),
        ("shared_mlp", 2),
        ("experts", 1),
        ("experts", 2),
        ("router", 2),
        ("q_proj, v_proj", 2),
        ("all", 2),
    ],
)
def test_adapter_of_a_run_loads_in_plain_peft_and_merges(
    tmp_path: Path, targets: str, expert_size: int
) -> None:
    base, live = tmp_path / "base", tmp_path / "live"
    write_released(base, dtype=torch.float32)
    lora = LoraConfig(use_lora=True, lora_rank=8, lora_alpha=16.0, lora_target_modules=targets)
    checkpoint = make_run(tmp_path / "run", base, lora)
    [losses, _] = run_ranks(train_and_export_adapter, 2, base, checkpoint, live, lora, expert_size)
    presets = (
        targets.split(", ")
        if targets != "all"
        else ["attention", "shared_mlp", "experts", "router"]
    )
    adapted = {
        name.partition(".layers.")[2].partition(".")[2].partition(".lora_")[0]
        for name in load_peft_weights(live, device="cpu")
    }
    assert (live / "adapter_model.safetensors").stat().st_mode == (
        live / "adapter_config.json"
    ).stat().st_mode
    assert adapted == set().union(*(MODULES_OF_PRESET[preset] for preset in presets))
    model = load_source(SHAPE, SafetensorsFolder.open(base, SHAPE))
    model = PeftModel.from_pretrained(model, live)
    assert (losses_of_prompts(model, make_prompts(SHAPE)) - losses).abs().max() < 2e-5
    merge_adapter(base, live, tmp_path / "merged")
    merged = load_source(SHAPE, SafetensorsFolder.open(tmp_path / "merged", SHAPE))
    assert (losses_of_prompts(merged, make_prompts(SHAPE)) - losses).abs().max() < 2e-5
    export_stopped_run(open_stopped_run(checkpoint, {}), tmp_path / "later")
    assert (tmp_path / "later/SHA256SUMS").read_text() == (live / "SHA256SUMS").read_text()

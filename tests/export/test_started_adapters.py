"""A run that starts from exported adapters starts from just these, on any split."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.export.started_adapters import find_started_adapters
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.zero import adapter_names, fill_adapters
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch
from tests.engines import end_engines, my_share, small_engine
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

LORA = {"use_lora": True, "lora_rank": 8, "lora_alpha": 16.0, "lora_target_modules": "all"}


def train_and_start_again(folder: Path) -> list[str]:
    """Adapters of two ranks that share the experts, read by two that each have all of them."""
    lora = LoraConfig(**LORA)
    engine = small_engine(stage=3, expert_size=2, lora=lora)
    train_step(engine, SFT, my_share(global_batch(0, 2)), learning_rate=1e-2)
    export_adapter(engine, folder / "first", lora, SHAPE, base_model="base")
    end_engines()
    engine = small_engine(stage=3, expert_size=1, lora=lora)
    started = LoraConfig(**LORA, adapter_name_or_path=str(folder / "first"))
    source = find_started_adapters(started, SHAPE)
    assert source is not None
    fill_adapters(engine.module, source)
    source.check_names(adapter_names(engine.module))
    export_adapter(engine, folder / "second", lora, SHAPE, base_model="base")
    refusals = []
    for name in adapter_names(engine.module):
        if ".experts." not in name:
            continue
        try:
            source.check_names({name})
        except ConfigError as error:
            refusals.append(str(error))
        break
    dist.barrier()
    return refusals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for [refusal] in run_ranks(train_and_start_again, 2, folder):
        assert "lora_target_modules does not name; name them, too" in refusal
    return folder


def test_adapters_come_back_bit_for_bit_on_another_split(folder: Path) -> None:
    first, second = (
        load_file(folder / name / "adapter_model.safetensors") for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert any(".experts" in key for key in first)
    for key, values in first.items():
        assert torch.equal(values, second[key]), key
    assert any(values.abs().max() > 0 for key, values in first.items() if ".lora_B." in key)


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("lora_rank", 16, "adapters in .* were made with 8; set --lora_rank 8"),
        ("lora_alpha", 8.0, "set --lora_alpha 16"),
        ("use_rslora", True, "set --use_rslora false"),
    ],
)  # fmt: skip
def test_adapters_made_with_other_settings_are_refused(
    folder: Path, setting: str, value: object, text: str
) -> None:
    started = LoraConfig(**LORA | {setting: value}, adapter_name_or_path=str(folder / "first"))
    with pytest.raises(ConfigError, match=text):
        find_started_adapters(started, SHAPE)


def test_a_folder_without_adapters_is_refused(tmp_path: Path) -> None:
    started = LoraConfig(**LORA, adapter_name_or_path=str(tmp_path))
    with pytest.raises(ConfigError, match="which holds no adapter_model"):
        find_started_adapters(started, SHAPE)

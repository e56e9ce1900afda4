"""What a gigabyte of weights costs: bytes read, and memory at the peak."""

from pathlib import Path

import pytest

from hunyuan_train.config.schema import LoraConfig
from tests.measured import (
    Repeated,
    export_run,
    largest_tensor,
    load,
    merge,
    shape_of_size,
    write_adapter,
    write_base,
    write_float8_base,
)
from tests.ranks import run_ranks
from tests.released import make_run, write_checkpoint

pytestmark = pytest.mark.slow

SHAPE = shape_of_size(1.2)
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gigabyte") / "base"
    write_base(folder, SHAPE)
    return folder


@pytest.mark.parametrize(
    ("world_size", "expert_size", "form"),
    [
        (2, 2, "bf16"),
        (4, 4, "bf16"),
        (4, 2, "bf16"),
        (2, 2, "fp8"),
        (2, 2, "nf4"),
        (2, 2, "int4"),
        (2, 2, "base"),
    ],
)
def test_rank_reads_what_it_owns_and_holds_little_more(
    base: Path, world_size: int, expert_size: int, form: str
) -> None:
    folder = base / "fp8" if form == "base" else base
    if form == "base":
        write_float8_base(base, folder, SHAPE)
    for rank in run_ranks(load, world_size, folder, expert_size, form):
        assert rank.num_owned <= rank.num_read <= 1.05 * rank.num_owned
        assert rank.peak_beside < max(1024 * MEBIBYTE, largest_tensor(base))


def test_export_of_a_stopped_run_takes_little_memory(base: Path, tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run", base)
    write_checkpoint(checkpoint, SHAPE, Repeated(), num_ranks=4, expert_size=2)
    [copy] = run_ranks(export_run, 1, tmp_path / "run", tmp_path / "out")
    assert copy.rise < 512 * MEBIBYTE


@pytest.mark.parametrize("targets", ["attention", "attention,experts"])
def test_merge_takes_little_memory(base: Path, tmp_path: Path, targets: str) -> None:
    lora = LoraConfig(use_lora=True, lora_rank=16, lora_target_modules=targets)
    write_adapter(tmp_path / "adapter", SHAPE, lora)
    [copy] = run_ranks(merge, 1, base, tmp_path / "adapter", tmp_path / "out")
    assert copy.rise < 512 * MEBIBYTE
    assert copy.highest < 2000 * MEBIBYTE

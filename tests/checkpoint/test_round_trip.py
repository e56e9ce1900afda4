"""Weights in, split in any way, weights out: every tensor the same to the last bit."""

from functools import partial
from pathlib import Path

import pytest
import torch

from hunyuan_train.export.check import check_model
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model, read_prompts
from hunyuan_train.export.huggingface_folder import Release
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model import weights
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.parallel.zero import weight_shards
from hunyuan_train.shipped import TINY_TOKENIZER
from hunyuan_train.trainer.state import TrainerState
from tests.engines import save_checkpoint, small_engine
from tests.ranks import run_ranks
from tests.released import SHAPE, make_run, read_released, write_released


def pass_through(
    base: Path, live: Path, checkpoint: Path, stage: int, expert_size: int, is_bf16: bool
) -> tuple[int, int]:
    """Load, export, save; return the bytes read from the base and the bytes of what is kept."""
    num_read = 0

    def count_read(location, start, stop):
        nonlocal num_read
        num_read += (stop - start) * location.itemsize
        return original(location, start, stop)

    original, weights.read_range = weights.read_range, count_read
    source = SafetensorsFolder.open(base, read_shape(base))
    engine = small_engine(
        stage=stage, expert_size=expert_size, is_bf16=is_bf16, shape=SHAPE, source=source
    )
    weights.read_range = original
    num_kept = sum(
        (piece_stop - piece_start) * source.locations[shard.stored[0].name].itemsize
        for shard in weight_shards(engine.module)
        for piece_start, piece_stop in [(shard.start, shard.stop)]
    )
    companions = (base, TINY_TOKENIZER)
    release = Release(shape=SHAPE, dtype=torch.bfloat16, companions=companions, base=base)
    trained = read_prompts(engine, SHAPE, written_dtype=release.dtype)
    export_model(engine, live, release, source, check=partial(check_model, trained))
    save_checkpoint(engine, TrainerState(), checkpoint)
    return num_read, num_kept


@pytest.mark.parametrize(
    ("world_size", "stage", "expert_size", "is_fused", "is_native", "is_bf16"),
    [
        pytest.param(1, 3, 1, False, False, False, id="1 rank"),
        pytest.param(2, 3, 2, True, False, False, id="2 ranks, experts over 2, fused"),
        pytest.param(2, 3, 1, False, True, True, id="2 ranks, experts whole, native, bf16"),
        pytest.param(2, 2, 0, True, True, False, id="2 ranks, ZeRO-2, fused, native"),
        pytest.param(4, 3, 4, True, True, True, id="4 ranks, experts over 4, fused, native, bf16"),
        pytest.param(4, 3, 2, False, False, False, id="4 ranks, experts over 2, twice"),
    ],
)  # fmt: skip
def test_untrained_weights_come_out_as_they_went_in(
    tmp_path: Path,
    world_size: int,
    stage: int,
    expert_size: int,
    is_fused: bool,
    is_native: bool,
    is_bf16: bool,
) -> None:
    base, live = tmp_path / "base", tmp_path / "live"
    expected = write_released(base, is_fused=is_fused, is_native=is_native)
    checkpoint = make_run(tmp_path / "run", base)
    ranks = run_ranks(pass_through, world_size, base, live, checkpoint, stage, expert_size, is_bf16)
    exported = read_released(live)
    assert exported.keys() == expected.keys()
    for name, values in expected.items():
        assert exported[name].dtype == values.dtype
        assert torch.equal(exported[name], values), name
    export_stopped_run(open_stopped_run(checkpoint, {}), tmp_path / "later")
    assert (tmp_path / "later/SHA256SUMS").read_text() == (live / "SHA256SUMS").read_text()
    for num_read, num_kept in ranks:
        assert num_kept <= num_read <= 1.05 * num_kept

"""The part of `export` and `merge` that needs torch, once all is checked."""

from pathlib import Path

import torch
from transformers.utils.logging import set_verbosity_error

from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.merge import merge_adapter

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def export(checkpoint: Path, moved: dict[str, str], output: Path, *, dtype: str | None) -> None:
    """Export from a stopped run.

    Args:
        checkpoint: its folder, or that of the run.
        moved: settings whose folders lie elsewhere by now.
        output: the final folder.
        dtype: of the weights; None: that of the base.
    """
    _prepare()
    run = open_stopped_run(checkpoint, moved)
    export_stopped_run(run, output, dtype=DTYPES[dtype] if dtype else None)


def merge(base: Path, adapter: Path, output: Path) -> None:
    """Merge an adapter into a base that is not quantised."""
    _prepare()
    merge_adapter(base, adapter, output)


def _prepare() -> None:
    set_verbosity_error()  # it warns of the released RoPE's alpha, which it knows and uses
    torch.set_num_threads(1)  # the work is dealt out in threads of our own

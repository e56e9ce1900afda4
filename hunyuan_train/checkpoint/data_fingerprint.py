"""Refuses to resume on other data than a checkpoint saw, unless that is what is wanted."""

from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.data.compiled.fingerprint import Identity, list_differences

_NUM_SHOWN = 5


def check_same_data(folder: Path, current: Identity, *, ignores_change: bool) -> bool:
    """Whether the data is what the checkpoint saw.

    Raises:
        CheckpointError: it is not, naming what differs, unless `ignores_change`.
    """
    differences = list_differences(read_manifest(folder)["fingerprints"]["data"], current)
    if differences and not ignores_change:
        num_more = len(differences) - _NUM_SHOWN
        shown = differences[:_NUM_SHOWN] + ([f"and {num_more:,} more"] if num_more > 0 else [])
        raise CheckpointError(
            f"{folder} was trained on other data: {'; '.join(shown)}. Restore what it was, or give "
            "--ignore_data_change: weights, optimizer and step are kept then, and the new data is "
            "read from its first row on"
        )
    return not differences

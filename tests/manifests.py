"""Manifests of checkpoints that no run has written."""

from typing import Any

from hunyuan_train.checkpoint.folder import DIGEST, FORMAT_VERSION

NO_FILE = {"size": 0, DIGEST: "0" * 64, "ranges": {}}


def make_manifest(files: dict[str, dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """All that a manifest must hold, with some fields as given."""
    return {
        "format_version": FORMAT_VERSION,
        "state": {"step": 3, "position": {"epoch": 0, "row": 3}, "health": {"recent_losses": []}},
        "kinds": ["master"],
        "is_model_only": False,
        "optimizer_step_count": 3,
        "fingerprints": {},
        "files": {name: NO_FILE | entry for name, entry in files.items()},
        **fields,
    }

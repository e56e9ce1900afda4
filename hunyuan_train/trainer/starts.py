"""What a run is made of, noted each time that it starts: code, versions, data, machine, plan."""

import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hunyuan_train.config.run_files import STARTS
from hunyuan_train.data.dataset import DataSummary
from hunyuan_train.data.inspection.describe import describe_findings
from hunyuan_train.shipped import CODE_FOLDER, IS_INSTALLED

GIT_TIMEOUT_SECONDS = 10


def describe_start(
    made_of: dict[str, Any],
    data: dict[str, Any],
    summary: DataSummary,
    *,
    plan: dict[str, Any],
    lost: dict[str, Any],
) -> dict[str, Any]:
    """One line of `starts.jsonl`, and what trackers show beside the settings.

    Args:
        made_of: the model and the versions of all that decides a run's numbers.
        data: identity of the training data.
        summary: of that data; what was left out, fixed or only noted is told from it.
        plan: bytes, and seconds of a step where they are known.
        lost: what quantised experts cost, where that was measured.
    """
    is_on_gpu = torch.cuda.is_available()
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "num_processes": dist.get_world_size(),
        "device": torch.cuda.get_device_name() if is_on_gpu else "CPU",
        "versions": made_of["code"],
        # An environment may lie inside a repository of the user's, which says nothing of our code.
        "git": None if IS_INSTALLED else read_git_state(CODE_FOLDER),
        "data": data,
        "found": describe_findings(summary),
        "plan": plan,
        **({"experts": lost} if lost else {}),
    }


def count_starts(output_dir: Path) -> int:
    """How often a run has been started so far."""
    path = output_dir / STARTS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def read_git_state(repository: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None where there is no repository or no git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(repository), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_SECONDS
        )
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "is_dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None

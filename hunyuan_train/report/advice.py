"""What to do about a warning. Most of ours say it themselves; these are the others."""

import re

# The beginning or a part of a warning, and the remedy.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"routing diverged from the base model",
        "Lower --learning_rate, freeze the routers with --freeze_router, or let the guardian act: "
        "--router_guardian freeze_router.",
    ),
    (
        r"step \d+ is bad",
        "Look at the samples that quarantine.jsonl names. If there are many, lower "
        "--learning_rate.",
    ),
    (
        r"cannot be written|No space left|disk is (nearly )?full",
        "Make room on the disk. Lines wait in memory, and the next save needs room, too.",
    ),
    (
        r"(wandb|tracker|Tracker|TensorBoard).*(not reachable|failed)",
        "Nothing is lost: all numbers are in metrics.jsonl. Check the tracker's server and key.",
    ),
    (
        r"checkpoint.*(failed|could not|NOT SAVED)|NOT SAVED",
        "Check free space and permissions of the output folder. Until then, a restart resumes from "
        "the last checkpoint that was saved.",
    ),
    (
        r"out of memory|OutOfMemory",
        "Lower --per_device_train_batch_size or --max_seq_length, or set --activation_offload.",
    ),
    (
        r"holds no profile of the base model",
        "Drift is measured from the resumed step. Keep router_load.jsonl beside the checkpoints.",
    ),
)


def advise(warning: str) -> str:
    """What to do about a warning; empty where its own text has to do."""
    return next((remedy for mark, remedy in REMEDIES if re.search(mark, warning)), "")

"""The section `checkpoints`: what is saved, how long it is kept, and what a run resumes from."""

from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.declare import Auto, check_bounds, free_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What is saved, how long it is kept, and what a run resumes from."""

    save_steps: int | float = free_setting(
        0,
        "save a checkpoint every N steps, or below 1 after each such share of the run (0.2: five "
        "times). 0: only at the end",
        low=0,
        form="share",
    )
    save_total_limit: int = free_setting(
        0, "number of checkpoints to keep. The oldest is deleted first (0: keep all)", low=0
    )
    save_best: bool = free_setting(
        False, "also save whenever metric_for_best_model is best, and keep that checkpoint"
    )
    save_keep_every: int = free_setting(
        0, "keep the checkpoint of every N-th step for good (0: of none)", low=0
    )
    save_only_model: bool = free_setting(
        False,
        "save weights without optimizer states, for export: a third of the size with adamw, half "
        "with lean. Such a checkpoint cannot be resumed",
    )
    snapshot_gib: float | Auto = free_setting(
        "auto",
        "host memory, in GiB per process, for copies of states that are written during training. "
        "The rest is written before the next update (auto: half of the free memory)",
        low=0,
        high=10**6,
    )
    wait_for_room_minutes: float = free_setting(
        60.0,
        "minutes that a complete run waits for space on a full disk, with its weights in memory, "
        "before it ends without its last checkpoint or export",
        low=0,
    )
    after_checkpoint: str | None = free_setting(
        None,
        "a command for sh that runs during training after each checkpoint, such as a copy to "
        "another machine. The folder is $1, or the last word. A failure is reported, and the "
        "command is tried again",
    )
    before_resume: str | None = free_setting(
        None,
        "a command for sh that runs before a resume looks for checkpoints, such as one that "
        "fetches copies. output_dir is $1, or the last word. It must also succeed if there are "
        "no copies",
    )
    commands_on: Literal["first_host", "each_host"] = free_setting(
        "first_host",
        "hosts on which after_checkpoint and before_resume run. first_host: for copies in one "
        "place. each_host: for copies on each host's own disk",
    )
    resume_from_checkpoint: str | None = free_setting(
        None,
        "auto (newest complete checkpoint of output_dir, if any) or a checkpoint folder",
        form="path",
    )
    ignore_data_change: bool = free_setting(
        False,
        "resume although the data differs from the checkpoint's. The new data is read from its "
        "start",
    )
    ignore_code_change: bool = free_setting(
        False, "resume although this code or a library has another version than the checkpoint's"
    )
    ignore_settings_change: bool = free_setting(
        False, "resume although settings differ that affect training steps, such as learning_rate"
    )
    export: bool = free_setting(True, "write an HF-format model folder at the end")

    def __post_init__(self) -> None:
        check_bounds(self)

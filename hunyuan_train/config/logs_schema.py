"""The section `logs`: what a run says of itself, and where."""

from dataclasses import dataclass

from hunyuan_train.config.declare import LEAST_SHARE, check_bounds, free_setting
from hunyuan_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """What a run logs, and where."""

    logging_steps: int | float = free_setting(
        1,
        "log every N steps, or below 1 after each such share of the run",
        low=LEAST_SHARE,
        form="share",
    )
    report_to: str = free_setting(
        "none",
        "trackers beside metrics.jsonl: wandb, tensorboard, swanlab, mlflow, several of them "
        "comma-separated, or none",
        form="list",
    )
    run_name: str | None = free_setting(
        None, "name of the run in trackers (default: the name of output_dir)"
    )
    profile: str | None = free_setting(
        None,
        "trace these steps on every process, such as 10-12. output_dir/profile gets a trace for "
        "chrome://tracing or Perfetto, and a table of the heaviest operations",
    )
    verbose: bool = free_setting(
        False, "also show the libraries' messages on the screen. log/rank0.txt always has them"
    )
    quiet: bool = free_setting(
        False, "show only warnings, errors and how to continue. log/rank0.txt has everything"
    )
    json: bool = free_setting(
        False,
        "for schedulers: write one JSON object per line to stderr. Those of steps have the "
        "step's numbers",
    )
    record_batches: bool = free_setting(
        False, "write the digest of each process's batch to log/batches-rankN.jsonl every step"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.quiet and self.verbose:
            raise ConfigError("quiet and verbose are both true; a screen cannot be both, keep one")

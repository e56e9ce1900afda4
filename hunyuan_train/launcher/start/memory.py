"""Makes the plan of a run before it starts, and refuses what this machine cannot hold."""

import shutil
from pathlib import Path

from rich.console import Console

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.prepare import PreparedRun
from hunyuan_train.planner.component import gigabytes
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.search import find_nearest
from hunyuan_train.planner.text import describe_nearest, describe_shortage
from hunyuan_train.shipped import render_command


def check_memory(
    prepared: PreparedRun,
    console: Console,
    *,
    talk: Console | None = None,
    reserved_bytes: int = 0,
) -> None:
    """Say what memory a run will take, and refuse it where its hosts have less.

    Args:
        prepared: the run.
        console: where it is said.
        talk: where figures are said that are no warning, if elsewhere.
        reserved_bytes: of its disk, which a download will take first.

    Raises:
        ConfigError: with the arithmetic and the nearest plan that fits, unless force_plan is set.
    """
    run, num_data_tokens = prepared.run, prepared.train.summary.num_tokens
    hardware = Hardware(disk=max(1, room_on_disk(run.config) - reserved_bytes))
    estimate = estimate_run(run, hardware, num_data_tokens=num_data_tokens)
    device = f"{gigabytes(estimate.memory.device_peak)} a GPU, " if run.is_on_gpu else ""
    host, disk = gigabytes(estimate.host_per_node), gigabytes(estimate.disk.total)
    (talk or console).print(
        f"memory     {device}{host} of the host's; {disk} of disk", highlight=False
    )
    if estimate.fits:
        return
    reasons = "; ".join(describe_shortage(shortage) for shortage in estimate.shortages)
    if run.config.parallel.force_plan:
        console.print(f"started all the same, as force_plan says: {reasons}", soft_wrap=True)
        return
    remedy = describe_nearest(find_nearest(run.config, run, hardware), estimate)
    raise ConfigError(
        f"this run does not fit: {reasons}; {remedy}. `{render_command('plan')} "
        "--config FILE` "
        "shows all of it; --force_plan starts it all the same"
    )


def room_on_disk(config: RunConfig) -> int:
    """Bytes that the files of a run may take."""
    output_dir = Path(config.train.output_dir)
    return free_disk(output_dir) + replaced_bytes(output_dir, config.checkpoints)


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be made; 1 where none are: 0 is no limit."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return max(1, shutil.disk_usage(existing).free)


def replaced_bytes(output_dir: Path, config: CheckpointConfig) -> int:
    """Bytes of the checkpoints that a resumed run deletes as it writes newer ones."""
    if config.resume_from_checkpoint is None or not config.save_total_limit:
        return 0
    replaced = list_checkpoints(output_dir)[-config.save_total_limit :]
    return sum(file.stat().st_size for folder in replaced for file in folder.iterdir())

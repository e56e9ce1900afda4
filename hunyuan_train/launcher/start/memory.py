"""Makes the plan of a run before it starts, and refuses what this machine cannot hold."""

import shutil
from pathlib import Path

from rich.console import Console

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.config.schema import CheckpointConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.preflight import Plan, with_processes
from hunyuan_train.launcher.start.prepare import PreparedData
from hunyuan_train.planner.component import gigabytes
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.search import find_nearest
from hunyuan_train.planner.text import describe_nearest, describe_shortage


def check_memory(plan: Plan, data: PreparedData, console: Console) -> None:
    """Say what memory a run will take, and refuse it where its hosts have less.

    Raises:
        ConfigError: with the arithmetic and the nearest plan that fits, unless force_plan is set.
    """
    # Hosts may differ: the one with most processes, on the machine that has least of each thing.
    config, hardware = with_processes(plan.config, max(plan.slots)), describe_hardware(plan)
    num_data_tokens = data.train.summary.num_tokens
    estimate = estimate_run(config, data.shape, hardware, num_data_tokens=num_data_tokens)
    device = f"{gigabytes(estimate.memory.device_peak)} a GPU, " if hardware.gpus_per_node else ""
    host, disk = gigabytes(estimate.host_per_node), gigabytes(estimate.disk.total)
    console.print(f"memory     {device}{host} of the host's; {disk} of disk", highlight=False)
    if estimate.fits:
        return
    reasons = "; ".join(describe_shortage(shortage) for shortage in estimate.shortages)
    if config.parallel.force_plan:
        console.print(f"started all the same, as force_plan says: {reasons}", soft_wrap=True)
        return
    remedy = describe_nearest(find_nearest(config, data.shape, hardware))
    raise ConfigError(
        f"this run does not fit: {reasons}; {remedy}. `hunyuan-train plan --config FILE` "
        "shows all of it; --force_plan starts it all the same"
    )


def describe_hardware(plan: Plan) -> Hardware:
    """What every host has, at least, of everything that a run may use up."""
    machine, output_dir = plan.machine, Path(plan.config.train.output_dir)
    return Hardware(
        num_nodes=len(plan.slots),
        gpus_per_node=machine.num_gpus,
        num_ranks=plan.num_ranks,
        gpu_memory=machine.gpu_memory,
        host_memory=machine.host_memory,
        disk=free_disk(output_dir) + replaced_bytes(output_dir, plan.config.checkpoints),
    )


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

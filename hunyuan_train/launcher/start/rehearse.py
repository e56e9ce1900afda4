"""A dry run for machines that are not at hand: real data and settings, and the plan's figures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hunyuan_train.config.planned_machines import PlannedMachines
from hunyuan_train.config.resolve import choose_num_processes, resolve
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import read_setting
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.launcher.exit_codes import SUCCESS
from hunyuan_train.launcher.start.prepare import PreparedRun, prepare_run
from hunyuan_train.launcher.start.run_summary import check_schedule, show_summary
from hunyuan_train.model.base_folder import locate_base
from hunyuan_train.plain_text import count_of
from hunyuan_train.planner.command import find_shape
from hunyuan_train.planner.component import gigabytes
from hunyuan_train.planner.disk import count_checkpoints
from hunyuan_train.planner.estimate import Estimate, estimate_run
from hunyuan_train.planner.gentlest import resolve_gentlest
from hunyuan_train.planner.machine import as_hardware, as_machine
from hunyuan_train.planner.search import find_nearest
from hunyuan_train.planner.text import describe_estimate, describe_nearest, describe_shortage
from hunyuan_train.terminal import PlainConsole
from hunyuan_train.trainer.schedule import whole_steps


def rehearse(config: RunConfig, machines: PlannedMachines) -> int:
    """Check a run as if it started on other machines, and say what it would take there.

    Raises:
        ConfigError: settings that do not go together, or a run that does not fit.
    """
    console = PlainConsole(stderr=True, soft_wrap=True, highlight=False)
    check_hosts(config)
    machine, hardware = as_machine(machines), as_hardware(machines)
    resolve_there = partial(
        resolve,
        shape=find_shape(config),
        machine=machine,
        slots=[choose_num_processes(config, machine)] * machines.nodes,
        known=SETTINGS_ALONE,
    )
    run = resolve_gentlest(config, resolve_there, hardware)
    prepared = prepare_run(run)
    show_summary(prepared, console)
    check_schedule(prepared, console)
    for line in check_files(prepared):
        console.print(line, markup=False)
    estimate = estimate_run(
        prepared.run,
        hardware,
        num_data_tokens=prepared.train.summary.num_tokens,
        num_checkpoints=count_saves(prepared),
    )
    for line in ("", *describe_estimate(estimate), *describe_whole_run(prepared, estimate)):
        console.print(line, markup=False)
    if not estimate.fits:
        reasons = "; ".join(map(describe_shortage, estimate.shortages))
        remedy = describe_nearest(find_nearest(config, run, hardware), estimate)
        raise ConfigError(f"this run does not fit on these machines: {reasons}; {remedy}")
    console.print("dry run: every check passed, nothing was started")
    return SUCCESS


def check_hosts(config: RunConfig) -> None:
    """Refuse hosts beside machines that are only described.

    Raises:
        ConfigError: settings name hosts.
    """
    for name in ("node_ip_list", "hostfile"):
        value = read_setting(config, name)
        if value:
            raise ConfigError(
                f"{name} is {value}, and the machines to plan for are described by --gpus, --nodes "
                "and --gpu; leave one of them out"
            )


def check_files(prepared: PreparedRun) -> Iterator[str]:
    """Check the model's weights where they are here, and say so where they are not."""
    name = prepared.run.config.model.model_name_or_path
    if name in PRESETS:
        return
    if any(Path(name).glob("*.safetensors*")):
        locate_base(Path(name), prepared.run.shape)
    else:
        yield f"files      the weights of {name} are not on this machine, and were not looked at"


def count_saves(prepared: PreparedRun) -> int:
    """Checkpoints that this run would hold at its end."""
    saves, num_steps = prepared.run.config.checkpoints, prepared.length.num_steps
    return count_checkpoints(saves, num_steps, whole_steps(saves.save_steps, num_steps))


def describe_whole_run(prepared: PreparedRun, estimate: Estimate) -> Iterator[str]:
    """Steps, hours and disk of the whole run on this data."""
    num_steps, seconds, disk = prepared.length.num_steps, estimate.speed.seconds, estimate.disk
    num_gpus = prepared.run.num_ranks
    whole = num_steps * seconds
    yield ""
    yield "the whole run on this data, without its start, evaluations and saves"
    yield (
        f"  {count_of(num_steps, 'step')} of {seconds:.2f} s: {describe_time(whole)}, "
        f"{describe_time(whole * num_gpus, of='GPU ')}"
    )
    yield (
        f"  {disk.num_kept} checkpoint(s) of {gigabytes(disk.checkpoint)} at a time and an export "
        f"of {gigabytes(disk.export)}: {gigabytes(disk.total)} of disk"
    )


def describe_time(seconds: float, *, of: str = "") -> str:
    """A time in the largest unit of which there is a whole one."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {of}{unit}"
    return f"{seconds:,.0f} {of}seconds" if seconds >= 1 else f"less than one {of}second"

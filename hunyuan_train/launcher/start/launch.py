"""From a command line to running ranks, on this machine or on many."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.checkpoint.user_commands import fetch_checkpoints
from hunyuan_train.config.load import CommandLine
from hunyuan_train.config.resolve import choose_num_processes
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.hub.download import check_room
from hunyuan_train.launcher.cluster.cluster import Cluster, find_cluster, with_environment
from hunyuan_train.launcher.exit_codes import INTERRUPTED, RESUME, SUCCESS, TERMINATED
from hunyuan_train.launcher.host.triton import check_triton
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.start.inputs_by_name import (
    NamedInputs,
    describe_download,
    fetch_all_but_weights,
    fetch_checked_weights,
)
from hunyuan_train.launcher.start.memory import check_memory
from hunyuan_train.launcher.start.prepare import (
    check_resume,
    check_whose_checkpoints,
    lock_output_folder,
    prepare_output_folder,
    prepare_run,
)
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.launcher.start.run_summary import check_schedule, show_demo, show_summary
from hunyuan_train.launcher.start.variables import check_model_and_data, check_variables
from hunyuan_train.log import set_screen
from hunyuan_train.shipped import render_command
from hunyuan_train.terminal import PlainConsole

if TYPE_CHECKING:
    from hunyuan_train.launcher.job.outcome import Outcome
    from hunyuan_train.launcher.job.restart import Try

GOES_ON = (INTERRUPTED, TERMINATED, RESUME)  # exit codes after which the user may want to go on


def start_run(command: CommandLine, arguments: Sequence[str]) -> int:
    """Check a run and start it on the hosts that it names, or here; or do what was asked instead.

    Args:
        command: what `hunyuan-train train` was asked.
        arguments: the same as words.

    Returns:
        the exit code of the rank that failed first, or 0.
    """
    logs = command.config.logs
    set_screen(is_quiet=logs.quiet, is_json=logs.json)
    check_variables(os.environ, command)
    check_model_and_data(command)
    check_whose_checkpoints(command.config, command.file)
    if command.is_demo:
        show_demo(PlainConsole(stderr=True, soft_wrap=True, quiet=logs.quiet))
    inputs = fetch_all_but_weights(command.config)
    if command.machines:
        from hunyuan_train.launcher.start.rehearse import rehearse

        return rehearse(inputs.config, command.machines)
    config = with_environment(inputs.config, os.environ)
    console, machine = PlainConsole(stderr=True, soft_wrap=True), detect_machine()
    default_slots = choose_num_processes(config, machine)
    cluster = find_cluster(config, os.environ, default_slots=default_slots)
    if command.prints_torchrun or command.prints_slurm:
        from hunyuan_train.launcher.start.other_launchers import print_for_launcher

        has_weights = inputs.weights is None
        here = partial(resolve_here, config, slots=cluster.slots, has_weights=has_weights)
        is_slurm = command.prints_slurm
        return print_for_launcher(here, cluster, machine, arguments, is_slurm=is_slurm)
    is_dry_run = command.is_dry_run
    if inputs.weights and is_dry_run:
        check_room(inputs.weights.repository.name, inputs.weights.folder, inputs.weights.num_bytes)
        console.print(describe_download(inputs.weights), highlight=False)
    else:
        fetch_checked_weights(NamedInputs(config, inputs.weights), cluster, machine)
    if cluster.is_alone:
        has_weights = inputs.weights is None or not is_dry_run
        run = resolve_here(config, machine=machine, slots=cluster.slots, has_weights=has_weights)
        check_triton(run)
        return launch(run, partial(start_here, cluster, machine), is_dry_run=is_dry_run)
    run, start = prepare_hosts(config, cluster, console)
    return launch(run, start, is_dry_run=is_dry_run)


def prepare_hosts(
    config: RunConfig, cluster: Cluster, console: PlainConsole
) -> tuple[ResolvedRun, "Try"]:
    """Bring many hosts to where they can run, and what starts a run on them.

    Raises:
        ConfigError: what is wrong on which host, and what fixes it.
    """
    from hunyuan_train.launcher.cluster.sync import sync_hosts
    from hunyuan_train.launcher.start.deepspeed_launcher import try_deepspeed
    from hunyuan_train.launcher.start.many import ManyHosts, preflight_or_refuse

    if config.launch.sync:
        sync_hosts(config, cluster, console)
    preflight = preflight_or_refuse(config, cluster, console)
    run = resolve_here(config, machine=preflight.machine, slots=cluster.slots)
    many = ManyHosts(config, preflight, console)
    return run, partial(try_deepspeed, many) if config.launch.launcher == "deepspeed" else many


def start_here(cluster: Cluster, machine: Machine, config: RunConfig) -> "Outcome":
    """One try on this machine alone."""
    from hunyuan_train.launcher.start.one_host import try_here

    return try_here(cluster, machine, config)


def launch(run: ResolvedRun, start: "Try", *, is_dry_run: bool) -> int:
    """Say what a checked run will do, start its ranks and wait for them."""
    console = PlainConsole(stderr=True, soft_wrap=True)
    talk = PlainConsole(stderr=True, soft_wrap=True, quiet=run.config.logs.quiet)
    prepared = prepare_run(run)
    show_summary(prepared, talk)
    check_schedule(prepared, console)
    if is_dry_run:
        check_resume(prepared)
        check_memory(prepared, console, talk=talk)
        console.print("dry run: every check passed, nothing was started")
        return SUCCESS
    with lock_output_folder(run.config):
        fetch_checkpoints(run.config)
        check_resume(prepared)
        check_memory(prepared, console, talk=talk)
        config_file = prepare_output_folder(run.config, console)
        show_watch(config_file.parent, talk)
        from hunyuan_train.launcher.job.restart import run_until_done

        exit_code = run_until_done(run.config, start, console)
    if exit_code in GOES_ON and list_checkpoints(config_file.parent):
        resume = render_command(
            "train", "--config", config_file, "--resume_from_checkpoint", "auto"
        )
        console.print(f"stopped; to go on: {resume}", markup=False, highlight=False)
    return exit_code


def show_watch(folder: Path, console: PlainConsole) -> None:
    """Say how the run can be looked at while it goes on."""
    console.print(
        f"to watch this run, in another terminal: {render_command('watch', folder)}",
        highlight=False,
    )

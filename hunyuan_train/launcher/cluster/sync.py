"""Copies code, data and model to hosts that share no disk, with rsync over the same ssh."""

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.inputs import input_paths
from hunyuan_train.launcher.cluster.ssh import ssh_options
from hunyuan_train.shipped import CODE_FOLDER, IS_INSTALLED, PACKAGE, render_command

# A checkout is copied whole; of an environment only our package, beside which lie those of others.
OUR_CODE = str(PACKAGE if IS_INSTALLED else CODE_FOLDER)
# What a run writes, and what belongs to one host only.
LEFT_OUT = (".git/", ".venv*", "runs/", "__pycache__/", "wandb/", ".*_cache/")
# Only in these are files deleted that we do not have: old code would be found by its imports.
# The first filter that fits a file counts: R risks it, P protects it.
MIRRORED = ("R *",) if IS_INSTALLED else ("R /hunyuan_train/***", "R /ds_configs/***", "P *")


def sync_hosts(config: RunConfig, cluster: Cluster, console: Console) -> None:
    """Make the files of all other hosts like ours.

    Raises:
        ConfigError: rsync is missing here, or fails; naming the host.
    """
    if shutil.which("rsync") is None:
        raise ConfigError("sync is true, but rsync is not installed here: apt-get install rsync")
    others = [host for host in cluster.hosts if host != cluster.local]
    paths = paths_to_sync(config)
    with console.status(f"copying to {len(others)} hosts"):
        asyncio.run(_sync_all(others, paths, config.launch))
    console.print(f"{len(others)} hosts have {', '.join(paths)}", soft_wrap=True, highlight=False)


def paths_to_sync(config: RunConfig) -> list[str]:
    """Files and folders every host needs; what lies beside our code goes with it."""
    inside = f"{OUR_CODE}/"
    return [
        OUR_CODE,
        *(path for path in input_paths(config) if not path.startswith(inside)),
        *([] if f"{Path.cwd()}/".startswith(inside) else [str(Path.cwd())]),
    ]


async def _sync_all(hosts: Sequence[Host], paths: Sequence[str], launch: LaunchConfig) -> None:
    await asyncio.gather(*(_sync_host(host, paths, launch) for host in hosts))


async def _sync_host(host: Host, paths: Sequence[str], launch: LaunchConfig) -> None:
    for path in paths:
        process = await asyncio.create_subprocess_exec(
            *rsync_command(host, path, launch),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await process.communicate()
        if process.returncode:
            words = " ".join(stderr.decode(errors="replace").split())
            raise ConfigError(
                f"{path} could not be copied to host {host.address}: {words}; `apt-get install "
                f"rsync` there if it is missing, and see `{render_command('doctor')}`"
            )


def rsync_command(host: Host, path: str, launch: LaunchConfig) -> list[str]:
    """The words that make one file or folder of a host like ours.

    A working folder outside of our code is only made there, not filled: it may hold anything.
    """
    is_folder = Path(path).is_dir()
    is_bare = path == str(Path.cwd()) and path != OUR_CODE
    filters = [f"--exclude={pattern}" for pattern in (("*",) if is_bare else LEFT_OUT)]
    if path == OUR_CODE:
        filters += ["--delete", *(f"--filter={rule}" for rule in MIRRORED)]
    return [
        *("rsync", "--archive", "--mkpath", "--protect-args", *filters),
        *("--rsh", shlex.join(["ssh", *ssh_options(launch)])),
        *("--", f"{path}/" if is_folder else path),
        f"{host.in_brackets}:{path}/" if is_folder else f"{host.in_brackets}:{path}",
    ]

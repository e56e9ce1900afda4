"""Examines the hosts of a run: what to ask them, and what to make of the answers."""

import asyncio
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.inputs import input_paths, model_folder
from hunyuan_train.launcher.doctor.checks import Finding, Wanted, check_hosts, choose_interface
from hunyuan_train.launcher.doctor.survey import Report, survey
from hunyuan_train.launcher.host.extension import extensions_folder, needed_extensions
from hunyuan_train.launcher.job.jobs import Rendezvous
from hunyuan_train.launcher.rank.environment import rank_environment
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.shipped import CODE_FOLDER, REQUIREMENTS, TOP_LEVEL

NCCL_PACKAGES = ("nvidia-nccl-cu12", "nvidia-nccl-cu13", "flash-attn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What came of one look at all hosts."""

    cluster: Cluster
    reports: Sequence[Report]
    findings: Sequence[Finding]

    @property
    def failed(self) -> list[Finding]:
        """What keeps the run from starting."""
        return [finding for finding in self.findings if finding.verdict == "failed"]

    @property
    def failed_hosts(self) -> list[Host]:
        """The hosts with at least one such finding, in their order."""
        failed = {finding.host for finding in self.failed}
        return [host for host in self.cluster.hosts if host in failed]

    def rendezvous(self, master_port: int | None) -> Rendezvous:
        """Where the ranks meet; every host has answered."""
        chief = self.reports[0]
        interfaces = {report.host: choose_interface(report) for report in self.reports}
        return Rendezvous(
            address=chief.host.address,
            port=master_port or int(chief.found["free_port"]),
            interfaces={host: name for host, name in interfaces.items() if name},
        )

    @property
    def machine(self) -> Machine:
        """What every host offers."""
        return least_machine(self.reports)


def least_machine(reports: Sequence[Report]) -> Machine:
    """What every host offers to a run: the least of each thing."""
    found = [report.found for report in reports if report.found]
    cpu_only = os.environ.get("DS_ACCELERATOR", "cuda") != "cuda" or any(
        one["packages"]["torch"].endswith("+cpu") for one in found
    )
    num_gpus = 0 if cpu_only else min((len(one["gpus"]) for one in found), default=0)
    sizes = [gpu["mib"] * 2**20 for one in found for gpu in one["gpus"]]
    return Machine(
        num_gpus=num_gpus,
        num_cores=min((one["cores"] for one in found), default=1),
        gpu_memory=min(sizes, default=0) if num_gpus else 0,
        host_memory=min((one["total_memory"] for one in found), default=0),
    )


def run_preflight(config: RunConfig, cluster: Cluster) -> Preflight:
    """Look at all hosts of a run, within five seconds.

    Args:
        config: with the environment's settings.
        cluster: the hosts.
    """
    output_folder = Path(config.train.output_dir).absolute()
    environment = rank_environment(os.environ, num_processes=1, num_gpus=0, num_cores=1)
    port = config.launch.master_port
    with token_in(output_folder) as token:
        request = {
            "code_folder": str(CODE_FOLDER),
            "top_level": str(TOP_LEVEL),
            "packages": required_packages(),
            "paths": input_paths(config),
            "ports": [port] if port else [],
            "model": model_folder(config),
            "working_folder": str(Path.cwd()),
            "output_folder": str(output_folder),
            "token": token,
            "extensions_folder": str(extensions_folder(environment)),
        }
        chief = cluster.hosts[0].address
        reports = asyncio.run(survey(cluster, config.launch, request, chief_address=chief))
    num_gpus = least_machine(reports).num_gpus
    wanted = Wanted(
        uses_gpus=num_gpus > 0,
        needs_compiler=bool(needed_extensions(config, num_gpus=num_gpus)),
        builds_kernels=num_gpus > 0 and will_split_experts(config, cluster, reports),
        has_token=bool(token),
        master_port=port,
        working_folder=str(Path.cwd()),
        output_folder=str(output_folder),
    )
    findings = check_hosts(reports, wanted)
    return Preflight(cluster=cluster, reports=reports, findings=findings)


def will_split_experts(config: RunConfig, cluster: Cluster, reports: Sequence[Report]) -> bool:
    """Whether the run uses the engine's expert-parallel layer; no, where it cannot be resolved."""
    try:
        model = config.model
        shape = resolve_base(model.model_name_or_path, carry_mtp=model.carry_mtp)
        machine = least_machine(reports)
        run = resolve(
            config, shape=shape, machine=machine, slots=cluster.slots, known=SETTINGS_ALONE
        )
    except ConfigError:  # told where the run itself is resolved
        return False
    return run.splits_experts


def required_packages() -> list[str]:
    """The packages that every host needs in the same version."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    return [*re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE), *NCCL_PACKAGES]


@contextmanager
def token_in(output_folder: Path) -> Iterator[str]:
    """Mark the disk of the output folder, so that hosts can say whether they share it.

    Yields:
        the path of the mark; empty where nothing can be written.
    """
    folder = next(one for one in (output_folder, *output_folder.parents) if one.is_dir())
    token = folder / f".hunyuan_train-{secrets.token_hex(8)}"
    try:
        token.touch()
    except OSError:
        yield ""
        return
    try:
        yield str(token)
    finally:
        token.unlink(missing_ok=True)

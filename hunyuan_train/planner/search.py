"""The nearest plan that fits: the run with the fewest and mildest changes.

Every change has a price: what costs only time is cheap, what changes what is learned is dear. Runs
are tried in the order of their price, so the first that fits is the nearest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.model.expert_formats import GENTLEST_FIRST
from hunyuan_train.optim.records import OPTIMIZERS
from hunyuan_train.planner.estimate import Estimate, estimate_run
from hunyuan_train.planner.machine import Hardware

SHORTEST_ROW = 1024
ROW_HALVINGS = 3
NODE_DOUBLINGS = 4
FULL_MACHINE = 8  # GPUs
GPU_PRICE = 4.5  # of twice as many in a machine: less than of shorter rows, which lose samples
CHUNKS = (2, 4, 8)  # of experts, the fewest that fit: beyond, little is left of what they take
CHUNK_PRICE = 0.25  # of twice as many
# As config/recipes/lora.yaml has them; the rates of full training would hardly move an adapter.
ADAPTER_SETTINGS = {"use_lora": True, "optimizer": "adamw", "learning_rate": 1e-4, "min_lr": 1e-5}


@dataclass(frozen=True, slots=True)
class Change:
    """Some settings other than asked, or so many times the GPUs of a machine, or the machines."""

    price: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    times_nodes: int = 1
    times_gpus: int = 1


NO_CHANGE = Change(0.0)


@dataclass(frozen=True, slots=True)
class Nearest:
    """A run that fits, and what of it was not asked for."""

    config: RunConfig  # "auto" where it was asked for
    estimate: Estimate
    flags: list[str]


def find_nearest(asked: RunConfig, run: ResolvedRun, hardware: Hardware) -> Nearest | None:
    """The cheapest run that fits; None where none is known.

    Args:
        asked: the settings before "auto" was decided.
        run: what became of them; more of its machines may be suggested.
        hardware: of these machines.
    """
    kinds = list_choices(asked, run, hardware)
    if estimate_run(run, hardware).lacks_disk_alone:
        kinds = [disk_choices(asked)]  # nothing that changes a step makes room on a disk
    most_frugal = estimate_with(tuple(kind[-1] for kind in kinds), asked, run, hardware)
    if most_frugal and not most_frugal.fits:
        return None
    combinations = sorted(product(*kinds), key=lambda changes: sum(one.price for one in changes))
    for changes in combinations:
        estimate = estimate_with(changes, asked, run, hardware)
        if estimate and estimate.fits:
            settings = merged_settings(changes)
            flags = [
                f"--{name} {as_flag(value)}"
                for name, value in settings.items()
                if with_settings(asked, **{name: value}) != asked
            ]
            if estimate.run.machine.num_gpus != run.machine.num_gpus:
                flags.append(f"--gpus {estimate.run.machine.num_gpus}")
            if estimate.run.num_nodes != run.num_nodes:
                flags.append(f"--nodes {estimate.run.num_nodes}")
            return Nearest(with_settings(asked, **settings), estimate, flags)
    return None


def estimate_with(
    changes: Sequence[Change], asked: RunConfig, run: ResolvedRun, hardware: Hardware
) -> Estimate | None:
    """The plan of a run with some changes; None where they do not go together."""
    times = max(one.times_nodes for one in changes)
    times_gpus = max(one.times_gpus for one in changes)
    machine = replace(
        run.machine,
        num_gpus=run.machine.num_gpus * times_gpus,
        num_cores=run.machine.num_cores * times_gpus,
    )
    try:
        changed = resolve(
            with_settings(asked, **merged_settings(changes)),
            shape=run.shape,
            machine=machine,
            slots=tuple(size * times_gpus for size in run.slots) * times,
            known=SETTINGS_ALONE,
        )
    except ConfigError:
        return None
    return estimate_run(changed, hardware)


def merged_settings(changes: Sequence[Change]) -> dict[str, Any]:
    """All settings of some changes."""
    return {name: value for one in changes for name, value in one.settings.items()}


def as_flag(value: Any) -> str:  # noqa: ANN401 of any setting
    """A setting's value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def list_choices(config: RunConfig, run: ResolvedRun, hardware: Hardware) -> list[list[Change]]:
    """The choices of each kind: the first changes nothing, the last saves most."""
    return [
        working_choices(config, run),
        expert_choices(config),
        method_choices(config),
        form_choices(config, run),
        row_choices(config),
        disk_choices(config) if hardware.disk else [NO_CHANGE],
        node_choices(run.machine),
    ]


def working_choices(config: RunConfig, run: ResolvedRun) -> list[Change]:
    """Less work at a time: the same result, in more time."""
    train, settings = config.train, {}
    if train.gradient_checkpointing is not True:
        settings["gradient_checkpointing"] = True
    choices = [NO_CHANGE, Change(1.0, settings)] if settings else [NO_CHANGE]
    if run.shape.num_experts:
        whole = choices[-1]
        choices += [
            Change(whole.price + CHUNK_PRICE * doublings, {**whole.settings, "moe_chunks": number})
            for doublings, number in enumerate(CHUNKS, 1)
            if number > train.moe_chunks
        ]
    if train.per_device_train_batch_size > 1:
        rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
        smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}
        choices += [Change(one.price + 1.0, {**one.settings, **smaller}) for one in choices]
    room = run.machine.num_gpus // config.parallel.sequence_parallel_size
    doublings = range(1, room.bit_length())
    return choices + [share_rows(one, number, config) for number in doublings for one in choices]


def share_rows(change: Change, doublings: int, config: RunConfig) -> Change:
    """A change, and rows shared by more GPUs of a machine, with as many rows in a step as before.

    A size that the numbers of processes and of heads refuse is left out when it is tried.
    """
    asked = config.train.gradient_accumulation_steps
    steps = change.settings.get("gradient_accumulation_steps", asked)
    sharing = {
        "sequence_parallel_size": config.parallel.sequence_parallel_size << doublings,
        "gradient_accumulation_steps": steps << doublings,
    }
    return Change(change.price + 1.4 + 0.2 * doublings, {**change.settings, **sharing})


def expert_choices(config: RunConfig) -> list[Change]:
    """Experts split over as many ranks as can be, by a DeepSpeed file of ours."""
    if config.parallel.expert_parallel_size == config.parallel.deepspeed == "auto":
        return [NO_CHANGE]
    return [NO_CHANGE, Change(1.5, {"expert_parallel_size": "auto", "deepspeed": "auto"})]


def method_choices(config: RunConfig) -> list[Change]:
    """Other optimizers, and adapters instead of every parameter."""
    if config.lora.use_lora:
        return [NO_CHANGE]
    # A floor only where one was asked for: not every schedule reaches it.
    floor = {} if config.optimizer.min_lr else {"min_lr": 0.0}
    adapters = {**ADAPTER_SETTINGS, **floor, "deepspeed": "auto"}
    choices = [
        Change(one.search_price, {"optimizer": one.name, "deepspeed": "auto"})
        for one in OPTIMIZERS.values()
        if one.search_price and one.name != config.optimizer.optimizer
    ]
    return [NO_CHANGE, *choices, Change(14.0, adapters)]


def form_choices(config: RunConfig, run: ResolvedRun) -> list[Change]:
    """Frozen experts in fewer bits, which goes with adapters only."""
    if not run.shape.num_experts or run.shape.stored_as:
        return [NO_CHANGE]
    fewer = enumerate(GENTLEST_FIRST[1:3], 1)  # of the forms in 4 bits, the gentler
    return [NO_CHANGE, *(Change(2.0 * bits, {"expert_weights": form}) for bits, form in fewer)]


def row_choices(config: RunConfig) -> list[Change]:
    """Shorter rows: longer samples would be left out or cut."""
    longest = config.data.max_seq_length
    lengths = [longest >> halvings for halvings in range(1, ROW_HALVINGS + 1)]
    return [NO_CHANGE] + [
        Change(5.0 * index, {"max_seq_length": length})
        for index, length in enumerate(lengths, 1)
        if length >= SHORTEST_ROW
    ]


def disk_choices(config: RunConfig) -> list[Change]:
    """Fewer checkpoints at a time."""
    if not config.checkpoints.save_steps:
        return [NO_CHANGE]
    return [NO_CHANGE, Change(0.5, {"save_total_limit": 1}), Change(3.0, {"save_steps": 0})]


def node_choices(machine: Machine) -> list[Change]:
    """More GPUs in a machine, where it has fewer than usual; then more machines as full as that."""
    if not machine.num_gpus:
        return [NO_CHANGE]
    fuller = max(0, (FULL_MACHINE // machine.num_gpus).bit_length() - 1)
    gpus = [Change(GPU_PRICE * index, times_gpus=1 << index) for index in range(1, fuller + 1)]
    nodes = [
        Change(GPU_PRICE * fuller + 6.0 * index, times_nodes=1 << index, times_gpus=1 << fuller)
        for index in range(1, NODE_DOUBLINGS + 1)
    ]
    return [NO_CHANGE, *gpus, *nodes]

"""Where a run stands between two steps."""

from dataclasses import dataclass, field

from hunyuan_train.data.batches.loader import Position


@dataclass(frozen=True, slots=True)
class Health:
    """What is remembered of the steps so far, to tell bad ones."""

    recent_losses: tuple[float, ...] = ()  # of good steps, oldest first
    num_bad_in_a_row: int = 0
    num_rollbacks: int = 0  # how often the run went back to a checkpoint


def add_counts(total: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """Sums by name."""
    return total | {name: total.get(name, 0) + count for name, count in more.items()}


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where a run stands between two steps; a checkpoint holds exactly this beside the tensors."""

    step: int = 0  # optimizer steps done, skipped ones included
    position: Position = field(default_factory=Position)  # where the next step starts in the data
    tokens_seen: int = 0
    best_value: float | None = None  # of metric_for_best_model
    best_step: int | None = None  # its step
    num_worse: int = 0  # evaluations since
    samples_seen: dict[str, int] = field(default_factory=dict)  # by source
    tokens_by_source: dict[str, int] = field(default_factory=dict)
    health: Health = field(default_factory=Health)


def read_state(saved: dict[str, object]) -> TrainerState:
    """The state that `dataclasses.asdict` and JSON have made of one."""
    fields = dict(saved)
    position, health = fields.pop("position"), fields.pop("health")
    assert isinstance(position, dict)
    assert isinstance(health, dict)
    health["recent_losses"] = tuple(health["recent_losses"])
    if "num_returns" in health:  # as its name was in the first checkpoints
        health["num_rollbacks"] = health.pop("num_returns")
    return TrainerState(position=Position(**position), health=Health(**health), **fields)  # type: ignore[arg-type]

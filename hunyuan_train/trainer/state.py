"""Where a run stands between two steps."""

from dataclasses import dataclass, field

from hunyuan_train.data.loader import Position


@dataclass(frozen=True, slots=True)
class Health:
    """What the guardian remembers of the steps so far."""

    recent_losses: tuple[float, ...] = ()  # of good steps, oldest first
    num_bad_in_a_row: int = 0
    num_returns: int = 0  # how often the run went back to a checkpoint


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where a run stands between two steps; a checkpoint holds exactly this beside the tensors."""

    step: int = 0  # optimizer steps done, skipped ones included
    position: Position = field(default_factory=Position)  # where the next step starts in the data
    tokens_seen: int = 0
    best_eval_loss: float | None = None
    best_step: int | None = None  # the step of the best eval loss
    health: Health = field(default_factory=Health)


def read_state(saved: dict[str, object]) -> TrainerState:
    """The state that `dataclasses.asdict` and JSON have made of one."""
    fields = dict(saved)
    position, health = fields.pop("position"), fields.pop("health")
    assert isinstance(position, dict)
    assert isinstance(health, dict)
    health["recent_losses"] = tuple(health["recent_losses"])
    return TrainerState(position=Position(**position), health=Health(**health), **fields)  # type: ignore[arg-type]

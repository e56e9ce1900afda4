"""Settings of what watches the routers."""

from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.declare import check_bounds, setting


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardianConfig:
    """The reaction when routers collapse or drift from the base model's."""

    router_guardian: Literal["off", "warn", "freeze_router", "aux_loss", "stop"] = setting(
        "warn",
        "reaction to an alarm. warn: only report it. freeze_router: stop training the routers. "
        "aux_loss: turn the load-balancing loss on. stop: end the run, with its last checkpoint "
        "intact. off: no alarms",
    )
    router_check_steps: int = setting(1, "check the routers every N steps", low=1)
    router_entropy_fall: float = setting(
        0.2,
        "alarm if the entropy of a layer's load (1: all experts get the same) is this far below "
        "the base model's",
        low=0,
        high=1,
    )
    router_dead_share: float = setting(
        0.2,
        "alarm if more than this share of a layer's experts get nearly no tokens, although they "
        "get some in the base model",
        low=0,
        high=1,
    )
    router_violation_rise: float = setting(
        0.75,
        "alarm if the load of a layer's busiest expert (MaxVio) has risen by this share of the "
        "way from its load in the base model to all tokens",
        low=0,
        high=1,
    )
    router_drift_limit: float = setting(
        0.5,
        "alarm if the routing of a layer is this far from the base model's (Jensen-Shannon "
        "divergence, 0 to 1)",
        low=0,
        high=1,
    )
    router_alarm_aux_coef: float = setting(
        0.01,
        "weight of the load-balancing loss that router_guardian aux_loss turns on",
        low=0,
        high=1000,
    )

    def __post_init__(self) -> None:
        check_bounds(self)

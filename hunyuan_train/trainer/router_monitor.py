"""The router monitor: sees when routers collapse or drift, says so, and does what was asked for.

Routing is compared with a profile of the base model: the load of the first check. By default that
is the first step, whose forward passes all come before its update, so that a profile costs nothing.
All ranks see the load of all ranks, so all judge and act alike. What the monitor knows (the
profile, and what it did) is in `router_load.jsonl`, from which a resumed run takes it.

Shape letters:  E experts · L layers
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.config.guardian_schema import GuardianConfig
from hunyuan_train.config.run_files import ROUTER_LOAD
from hunyuan_train.json_lines import Lines, Numbers
from hunyuan_train.log import SHARED
from hunyuan_train.model.router_load import describe_load, divergence, to_shares
from hunyuan_train.objectives.router_losses import RouterTerms
from hunyuan_train.parallel.optimizer import hold_routers
from hunyuan_train.trainer.errors import TrainingError
from hunyuan_train.trainer.metrics import MetricsLog

logger = logging.getLogger(__name__)

PROFILE, LOAD, ACTION = "profile", "load", "action"  # kinds of its lines
# Below so many token slots for an expert of equal share, chance moves a load as far as a limit.
MIN_SLOTS = 32
SHARE_DIGITS = 6
QUIET_STEPS = 100  # an alarm that comes and goes is told again after so many steps without it

MEANINGS = {
    "entropy": "the entropy of its load fell by {value:.2f}",
    "dead": "{value:.0%} of its experts died",
    "violation": "its busiest expert is {value:.0%} of the way to getting every token",
    "drift": "its routing drifted by {value:.2f}",
}


class RouterCollapseError(TrainingError):
    """Routers collapsed or drifted, and the run was asked to stop then."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit passed in one layer."""

    kind: str
    layer: int
    value: float
    limit: float

    def __str__(self) -> str:
        meaning = MEANINGS[self.kind].format(value=self.value)
        return f"layer {self.layer}: {meaning} (limit {self.limit:g})"


def find_alarms(
    load_LE: Tensor,
    profile_LE: Tensor,
    config: GuardianConfig,
    *,
    top_k: int,
    first_layer: int = 0,
) -> list[Alarm]:
    """Compare a load with the base model's.

    Args:
        load_LE: [layers, experts], token slots of all ranks.
        profile_LE: [layers, experts], of the base model, counts or shares.
        config: the limits.
        top_k: experts of a token; an expert can get no more than every token once.
        first_layer: number of the first layer that has a router.
    """
    num_experts = load_LE.shape[1]
    if int(load_LE[0].sum()) < MIN_SLOTS * num_experts:
        return []
    now, base = describe_load(load_LE), describe_load(profile_LE)
    most = num_experts / top_k - 1
    rise_L = (now.violation - base.violation) / (most - base.violation).clamp(min=1e-9)
    died_L = (now.is_dead & ~base.is_dead).double().mean(dim=1)
    values = {
        "entropy": (base.entropy - now.entropy, config.router_entropy_fall),
        "dead": (died_L, config.router_dead_share),
        "violation": (rise_L, config.router_violation_rise),
        "drift": (divergence(load_LE, profile_LE), config.router_drift_limit),
    }
    return [
        Alarm(kind, layer, value, limit)
        for kind, (values_L, limit) in values.items()
        for layer, value in enumerate(values_L.tolist(), start=first_layer)
        if value > limit
    ]


def measure_load(load_LE: Tensor, profile_LE: Tensor | None) -> Numbers:
    """What is logged of a load, over all layers."""
    shape = describe_load(load_LE)
    numbers: Numbers = {
        "expert_imbalance": float(shape.violation.max()),
        "router_entropy": float(shape.entropy.mean()),
        "router_entropy_min": float(shape.entropy.min()),
        "dead_experts": shape.num_dead,
    }
    if profile_LE is not None:
        numbers["router_drift"] = float(divergence(load_LE, profile_LE).max())
    return numbers


class RouterMonitor:
    """Watches the routers of one run. Every rank has one and calls it at the same steps."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        routers: RouterTerms,
        config: GuardianConfig,
        log: Lines,
        metrics: MetricsLog,
    ) -> None:
        self.engine = engine
        self.routers = routers
        self.config = config
        self.log = log  # rank 0's is kept
        self.metrics = metrics  # whose trackers are told
        self.usual_coefficient = routers.balance_coefficient
        self.profile_LE: Tensor | None = None
        self.load_LE: Tensor | None = None  # of the last check
        self.checked_step = -1
        self.last_seen: dict[tuple[str, int], int] = {}  # step of each alarm's latest sign
        self.has_acted = False

    def start(self, step: int) -> None:
        """Take over what an earlier process knew.

        Args:
            step: optimizer steps done so far.
        """
        self._take_over(step or -1)  # a run from the start owes nothing to another
        if step >= self.config.router_check_steps and self._needs_profile():
            logger.warning(
                "%s holds no profile of the base model: drift is measured from step %d",
                *(ROUTER_LOAD, step),
                extra=SHARED,
            )

    def roll_back_to(self, step: int) -> None:
        """Forget what came after a step that the run returns to."""
        self._take_over(step)
        self.last_seen.clear()

    def check(self, step: int) -> None:
        """Look at the load since the last check, if a check is due.

        Raises:
            RouterCollapseError: on an alarm, where the policy says so; on every rank.
        """
        if step % self.config.router_check_steps:
            return
        load_LE = self.routers.watch.take_load()
        dist.all_reduce(load_LE)
        self.load_LE, self.checked_step = load_LE.cpu(), step
        if self._needs_profile():
            shares = _round_shares(self.load_LE)
            self.profile_LE = torch.tensor(shares, dtype=torch.float64)  # as it will be read again
            self._write(step, PROFILE, load=shares)
        if self.config.router_guardian == "off" or self.profile_LE is None:
            return
        alarms = find_alarms(
            self.load_LE,
            self.profile_LE,
            self.config,
            top_k=self.routers.top_k,
            first_layer=self.routers.first_layer,
        )
        fresh = [alarm for alarm in alarms if self._is_news(alarm, step)]
        self.last_seen |= {(alarm.kind, alarm.layer): step for alarm in alarms}
        if fresh:
            self._sound(step, fresh)

    def measure(self, step: int) -> Numbers:
        """What is logged of this step's check; nothing where it had none."""
        if self.load_LE is None or self.checked_step != step:
            return {}
        return measure_load(self.load_LE, self.profile_LE)

    def keep_load(self, step: int) -> None:
        """Note the load of the last check, and show it."""
        if self.load_LE is None:
            return
        shares = _round_shares(self.load_LE)
        self._write(step, LOAD, load=shares)
        self.metrics.show_load(shares, step)

    def _is_news(self, alarm: Alarm, step: int) -> bool:
        last = self.last_seen.get((alarm.kind, alarm.layer))
        return last is None or step - last > QUIET_STEPS

    def _sound(self, step: int, alarms: Sequence[Alarm]) -> None:
        policy = self.config.router_guardian
        what = "; ".join(str(alarm) for alarm in alarms[:4])
        if len(alarms) > 4:
            what += f"; and {len(alarms) - 4} more"
        done = "" if policy == "warn" or self.has_acted else f"; policy: {policy}"
        text = f"step {step}: routing diverged from the base model: {what}{done}"
        logger.warning("%s", text, extra=SHARED)
        self.metrics.alert("routers", text)
        self.keep_load(step)
        if policy == "stop":
            raise RouterCollapseError(
                f"{text}. The last checkpoint is intact: lower the learning rate, freeze the "
                "routers with --freeze_router, or raise the limit, and resume"
            )
        if policy != "warn" and not self.has_acted:
            self._write(step, ACTION, policy=policy)
            self._set_action(has_acted=True)

    def _set_action(self, *, has_acted: bool) -> None:
        self.has_acted = has_acted
        policy = self.config.router_guardian
        if policy == "freeze_router":
            hold_routers(self.engine.optimizer, is_held=has_acted)
        if policy == "aux_loss":
            wanted = self.config.router_alarm_aux_coef if has_acted else 0.0
            self.routers.balance_coefficient = max(self.usual_coefficient, wanted)

    def _needs_profile(self) -> bool:
        """With the guardian off none is taken, and no drift from it is measured."""
        return self.profile_LE is None and self.config.router_guardian != "off"

    def _take_over(self, step: int) -> None:
        entries = self._read_entries(step)
        known = [entry["load"] for entry in entries if entry["kind"] == PROFILE]
        self.profile_LE = torch.tensor(known[0], dtype=torch.float64) if known else None
        self._set_action(has_acted=any(entry["kind"] == ACTION for entry in entries))

    def _read_entries(self, step: int) -> list[dict[str, Any]]:
        """Rank 0's lines up to a step, on every rank."""
        self.log.forget_after(step)
        entries = [self.log.read()]
        dist.broadcast_object_list(entries)
        return entries[0]

    def _write(self, step: int, kind: str, **content: object) -> None:
        self.log.append({"step": step, "kind": kind, **content})


class NoRouters:
    """The monitor of a dense model, which has nothing to watch."""

    def start(self, step: int) -> None:
        """Nothing is known."""

    def roll_back_to(self, step: int) -> None:
        """There is nothing to forget."""

    def check(self, step: int) -> None:
        """Nothing can be wrong."""

    def measure(self, step: int) -> Numbers:
        """Nothing."""
        return {}

    def keep_load(self, step: int) -> None:
        """There is none."""


def _round_shares(load_LE: Tensor) -> list[list[float]]:
    """Shares of experts by layer, short enough for a line of JSON."""
    return [[round(share, SHARE_DIGITS) for share in row] for row in to_shares(load_LE).tolist()]

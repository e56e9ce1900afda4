"""Checks plans one after the other: ranks train, the reference trains, and the two are compared."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.selftest.compare import Errors, compare
from hunyuan_train.selftest.local_ranks import RanksError, run_ranks
from hunyuan_train.selftest.parity_cases import Plan
from hunyuan_train.selftest.record import Record
from hunyuan_train.selftest.reference import train_reference
from hunyuan_train.selftest.samples import make_steps
from hunyuan_train.selftest.training import train_plan

logger = logging.getLogger(__name__)

PRELOADED = ("hunyuan_train.selftest.preload",)
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one plan."""

    plan: Plan
    errors: Errors | None  # None where ranks failed
    failure: str  # why there is nothing to compare; empty otherwise
    seconds: float

    @property
    def wrong(self) -> list[str]:
        """What is out of tolerance; everything, where ranks failed."""
        return self.errors.over(self.plan.tolerance) if self.errors else ["ranks failed"]


class References:
    """Reference trainings; plans that differ only in how they are carried out share one."""

    def __init__(self) -> None:
        self._known: dict[object, Record] = {}

    def of(self, plan: Plan) -> Record:
        """The reference of a plan."""
        config, rates = plan.run.config, plan.run.config.optimizer
        is_sum_over_tokens = not (
            config.model.router_aux_loss_coef or config.model.router_z_loss_coef
        )
        key = (
            *(plan.run.shape, plan.num_batches, config.model, config.lora),
            *(find_optimizer(rates.optimizer).reference, rates.learning_rate, rates.weight_decay),
            *(rates.adam_beta1, rates.adam_beta2, rates.adam_epsilon),
            *(rates.max_grad_norm, config.train.seed, config.train.bf16),
            0 if is_sum_over_tokens else plan.num_groups,
        )
        if key not in self._known:
            steps = make_steps(plan.num_batches)
            self._known[key] = train_reference(config, plan.run.shape, steps, plan.num_groups)
        return self._known[key]


class RanksHere:
    """Trains plans on processes of this machine, and compares them with their references."""

    def __init__(self, train: Callable[..., Record] = train_plan) -> None:
        self.train = train  # what each rank runs; tests plant faults here
        self.references = References()

    def __call__(self, plan: Plan) -> Errors:
        """Train a plan and compare it.

        Raises:
            RanksError: a rank failed.
        """
        records = run_ranks(
            self.train,
            plan.num_processes,
            *(plan.run, make_steps(plan.num_batches)),
            preload=PRELOADED,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return compare(
            self.references.of(plan),
            records,
            max_grad_norm=plan.run.config.optimizer.max_grad_norm,
            is_bf16=plan.run.is_bf16,
        )


def check_plans(plans: Sequence[Plan], check: Callable[[Plan], Errors]) -> Iterator[Verdict]:
    """Check each plan as it is asked for.

    Args:
        plans: in this order.
        check: trains one and compares it.
    """
    for plan in plans:
        started = time.perf_counter()
        errors, failure = None, ""
        try:
            errors = check(plan)
        except (RanksError, ValueError) as error:
            failure = str(error).strip()
        yield Verdict(plan, errors, failure, time.perf_counter() - started)

"""Checks cases one after the other: ranks train, the reference trains, and the two are compared."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.selftest.compare import Errors, compare
from hunyuan_train.selftest.local_ranks import RanksError, run_ranks
from hunyuan_train.selftest.parity_cases import ParityCase
from hunyuan_train.selftest.record import Record
from hunyuan_train.selftest.reference import train_reference
from hunyuan_train.selftest.samples import make_steps
from hunyuan_train.selftest.training import train_case

logger = logging.getLogger(__name__)

PRELOADED = ("hunyuan_train.selftest.preload",)
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case."""

    case: ParityCase
    errors: Errors | None  # None where ranks failed, or nothing was trained
    failure: str  # why there is nothing to compare; empty otherwise
    seconds: float

    @property
    def wrong(self) -> list[str]:
        """What is out of tolerance; everything, where ranks failed; nothing, if not run."""
        if self.case.lack:
            return []
        return self.errors.over(self.case.tolerance) if self.errors else ["ranks failed"]


class References:
    """Reference trainings; cases that differ only in how they are carried out share one."""

    def __init__(self) -> None:
        self._known: dict[object, Record] = {}

    def of(self, case: ParityCase) -> Record:
        """The reference of a case."""
        config, rates = case.run.config, case.run.config.optimizer
        is_sum_over_tokens = not (
            config.model.router_aux_loss_coef or config.model.router_z_loss_coef
        )
        key = (
            *(case.run.shape, case.num_batches, config.model, config.lora, config.preferences),
            *(find_optimizer(rates.optimizer).reference, rates.learning_rate, rates.weight_decay),
            *(rates.adam_beta1, rates.adam_beta2, rates.adam_epsilon),
            *(rates.max_grad_norm, config.train.seed, config.train.bf16),
            0 if is_sum_over_tokens else case.num_groups,
        )
        if key not in self._known:
            steps = make_steps(case.num_batches)
            self._known[key] = train_reference(config, case.run.shape, steps, case.num_groups)
        return self._known[key]


class RanksHere:
    """Trains cases on processes of this machine, and compares them with their references."""

    def __init__(self, train: Callable[..., Record] = train_case) -> None:
        self.train = train  # what each rank runs; tests plant faults here
        self.references = References()

    def __call__(self, case: ParityCase) -> Errors:
        """Train a case and compare it.

        Raises:
            RanksError: a rank failed.
        """
        records = run_ranks(
            self.train,
            case.num_processes,
            *(case.run, make_steps(case.num_batches)),
            preload=PRELOADED,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return compare(
            self.references.of(case),
            records,
            max_grad_norm=case.run.config.optimizer.max_grad_norm,
            is_bf16=case.run.is_bf16,
        )


def check_cases(
    cases: Sequence[ParityCase], check: Callable[[ParityCase], Errors]
) -> Iterator[Verdict]:
    """Check each case as it is asked for.

    Args:
        cases: in this order.
        check: trains one and compares it.
    """
    for case in cases:
        if case.lack:
            yield Verdict(case, None, "", 0.0)
            continue
        started = time.perf_counter()
        errors, failure = None, ""
        try:
            errors = check(case)
        except (RanksError, ValueError) as error:
            failure = str(error).strip()
        yield Verdict(case, errors, failure, time.perf_counter() - started)

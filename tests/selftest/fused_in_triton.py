"""The selftest's cases of fused settings on a CPU, sound and with faults; run by `test_fused.py`.

    TRITON_INTERPRET=1 TRITON_PACKAGES=FOLDER python -m tests.selftest.fused_in_triton [CASE...]

Prints JSON: a list of case, fault (or ""), what is out of tolerance, and the errors as multiples of
what is allowed.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.selftest import commands, oracle, run
from hunyuan_train.selftest.parity_cases import ParityCase, list_cases
from tests.selftest import faults

Fault = Callable[[], None]
FAULTS: dict[str, tuple[Fault, ...]] = {
    "combine_impl": (faults.sum_outputs_in_the_order_of_experts,),
    "gate_up_impl": (faults.swap_gate_and_up,),
    "use_liger_kernel": (faults.leave_keys_unturned,),
    "async_split_plan": (faults.read_the_split_plan_too_early,),
}


def nothing() -> None:
    """No fault."""


def find_case(name: str) -> ParityCase:
    """A case of two ranks, which can run here now."""
    [case] = [one for one in list_cases(2, num_gpus=0) if one.name == name]
    return replace(case, lack="")


def check(name: str, fault: Fault) -> dict[str, object]:
    """Train a case."""
    case = find_case(name)
    ranks = oracle.RanksHere(partial(faults.train_with_fault, fault))
    [verdict] = oracle.check_cases([case], ranks)
    allowed = asdict(case.tolerance)
    errors = asdict(verdict.errors) if verdict.errors else {}
    return {
        "case": name,
        "fault": "" if fault is nothing else fault.__name__,
        "wrong": verdict.wrong,
        "multiples": {key: value / allowed[key] for key, value in errors.items()},
        "failure": verdict.failure[-2000:],
        "seconds": verdict.seconds,
    }


def main() -> None:
    machine = detect_machine()
    commands.set_environment(machine)
    run.compile_extensions([find_case(name) for name in FAULTS], machine)
    oracle.PRELOADED = ("tests.selftest.interpreted", *oracle.PRELOADED)
    oracle.TIMEOUT_SECONDS = 1800.0  # the interpreter takes its time
    found = []
    for name in sys.argv[1:] or FAULTS:
        for fault in (nothing, *FAULTS[name]):
            found.append(check(name, fault))
            sys.stderr.write(f"{json.dumps(found[-1])}\n")
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()

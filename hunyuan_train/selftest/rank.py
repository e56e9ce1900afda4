"""One rank of a case across hosts, as a job starts it; rank 0 prints what it found.

python -m hunyuan_train.selftest.rank CASE NUM_PROCESSES NUM_GPUS [RECIPE]
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch.distributed as dist

from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.selftest.compare import compare
from hunyuan_train.selftest.oracle import References
from hunyuan_train.selftest.parity_cases import choose_cases
from hunyuan_train.selftest.record import Record
from hunyuan_train.selftest.samples import make_steps
from hunyuan_train.selftest.training import train_case


def main(arguments: Sequence[str]) -> None:
    """Train this rank's part of the case; on rank 0, compare all parts with the reference."""
    screen = sys.stdout  # the training hides it from the libraries
    name, num_processes, num_gpus, *recipe = arguments
    cases = choose_cases(int(num_processes), recipe[0] if recipe else None, num_gpus=int(num_gpus))
    [case] = [case for case in cases if case.name == name]
    start_process_group(case.run.config.parallel.timeout_minutes)
    is_first = dist.get_rank() == 0
    # Before there is an engine, which puts its own functions in the place of torch's.
    reference = References().of(case) if is_first else None
    record = train_case(case.run, make_steps(case.num_batches))
    records: list[Record] | None = [record] * dist.get_world_size() if is_first else None
    dist.gather_object(record, records)
    if reference and records:
        errors = compare(
            reference,
            records,
            max_grad_norm=case.run.config.optimizer.max_grad_norm,
            is_bf16=case.run.is_bf16,
        )
        screen.write(json.dumps(asdict(errors)) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])

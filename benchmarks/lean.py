"""What is left of AdamW's update when weights are bfloat16: rounded to the nearest, and by lean.

    python -m benchmarks.lean [--report]

Sixty steps at a fine-tuning rate on gradients of a fixed direction, noise and uneven magnitudes;
then 300 steps of a small model with AdamW and with lean (tests/optim/test_lean_training.py); then
the time of an update, plain and, on a GPU, by one kernel.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor

from benchmarks.results import add_report_flag, show
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, SLICE_BLOCKS
from tests.optim import test_lean, test_lean_training

NUM_STEPS = 60
NUM_UPDATES = 7


def survival_rows() -> Iterator[str]:
    """Share of the float32 change that arrives, and in how far its direction does."""
    for standard_deviation in (0.02, 0.08):
        start = test_lean.first_weights(standard_deviation)
        exact = test_lean.train(test_lean.adamw(start.float()), NUM_STEPS) - start.float()
        lean = test_lean.lean_optimizer(start.clone())
        ends = {
            "AdamW, rounded to the nearest": test_lean.train(
                test_lean.adamw(start.clone()), NUM_STEPS
            ),
            "lean": test_lean.train(lean, NUM_STEPS),
        }
        moved, updated = lean.take_moved()
        for name, end in ends.items():
            share, cosine = compare(end.float() - start.float(), exact)
            each_step = f"{moved / updated:.1%}" if name == "lean" else ""
            cells = (f"{standard_deviation} | {name}", f"{share:.1%}", f"{cosine:.2f}", each_step)
            yield f"| {' | '.join(cells)} |"


def compare(change: Tensor, exact: Tensor) -> tuple[float, float]:
    """Projection of a change on the exact one, and the cosine between them."""
    product = float(change @ exact)
    return product / float(exact @ exact), product / float(change.norm() * exact.norm())


def training_rows() -> Iterator[str]:
    """Loss of the first and the last steps under the engine, experts split over two ranks."""
    for name, optimizer in (("AdamW, float32", "adamw"), ("lean, bfloat16", "lean")):
        losses = test_lean_training.losses_of(optimizer)
        last = losses[-test_lean_training.LAST_STEPS :]
        yield f"| {name} | {losses[0]:.4f} | {sum(last) / len(last):.4f} |"


def update_rows() -> Iterator[str]:
    """Milliseconds that a million bfloat16 weights take, and their ratio."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = torch.zeros(2 * SLICE_BLOCKS * LEAN_BLOCK, dtype=torch.bfloat16, device=device)
    optimizer = test_lean.lean_optimizer(weights)
    [parameter] = optimizer.param_groups[0]["params"]
    parameter.grad = torch.randn(len(weights)).bfloat16().to(device)
    plain = time_update(optimizer)
    times = {"plain": plain}
    if device.type == "cuda":  # the kernel has no CPU
        optimizer.compile_update(device)
        times["one kernel"] = time_update(optimizer)
    for name, seconds in times.items():
        each = seconds / len(weights) * 1e6 * 1e3
        yield f"| {name} | {each:.3f} ms | {seconds / plain:.2f} |"


def time_update(optimizer: torch.optim.Optimizer) -> float:
    """Seconds of a step."""
    times = []
    for _ in range(NUM_UPDATES):
        started = time.perf_counter()
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_report_flag(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = " ".join(["python -m benchmarks.lean", *sys.argv[1:]])
    text = "\n".join(
        [
            f"## Lean: {date.today()}",
            "",
            f"`{command}` on {platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared "
            f"and noisy, torch {version('torch')}",
            "",
            f"| weights' std | {NUM_STEPS} steps at 2e-5 | survives | cosine | move in a step |",
            "|---|---|---:|---:|---:|",
            *survival_rows(),
            "",
            "| 300 steps of a small model, ZeRO-3, EP 2 | first loss | mean of the last 20 |",
            "|---|---:|---:|",
            *training_rows(),
            "",
            f"| update, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'} "
            "| a million weights | of plain |",
            "|---|---:|---:|",
            *update_rows(),
            "",
        ]
    )
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()

"""Folders of runs with known numbers, and what a page about them holds."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

PLAN = {"memory_gib": 64.0, "tokens_per_second": 2000.0}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(step: int, output: str, *, is_exact: bool) -> dict:
    return {
        "step": step,
        "mode": "slow",
        "prompt": "<|startoftext|>Why <b>?<|extra_0|>",
        "reference": "<think>\nr\n</think>\n<answer>\nA\n</answer>",
        "output": output,
        "is_well_formed": is_exact,
        "is_leaking": not is_exact,
        "is_exact": is_exact,
        "set_f1": float(is_exact),
    }


def make_run(folder: Path, *, rate: float = 1e-5) -> Path:
    """A run folder with known numbers."""
    (folder / "log").mkdir(parents=True)
    steps = range(10, 1010, 10)
    metrics = [
        {
            "step": step,
            "loss": 2.0 + 1.0 / step,
            "loss_fast": 1.5,
            "loss_slow": 2.5,
            "learning_rate": rate,
            "grad_norm": None if step == 20 else 1.0,
            "tokens_per_second": 1000.0 + step,
            "memory_gib": 60.0 + step / 1000,
            "samples_seen_a.jsonl": 8 * step,
            "router_entropy": 0.9,
        }
        for step in steps
    ]
    write_lines(folder / "metrics.jsonl", metrics)
    load = [[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]
    write_lines(
        folder / "router_load.jsonl",
        [
            {"step": 0, "kind": "profile", "load": load},
            {"step": 1000, "kind": "load", "load": load},
        ],
    )
    write_lines(
        folder / "answers.jsonl",
        [answer(0, "<script>alert(1)</script>", is_exact=False), answer(9, "A", is_exact=True)],
    )
    start = {"step": 0, "time": "now", "num_processes": 8, "device": "CPU", "versions": {"t": "1"}}
    found = "noted: unused_field 2 (<script>alert(2)</script> 2)"
    start |= {"found": found, "data": {"samples": "0123456789abcdef0"}}
    write_lines(folder / "starts.jsonl", [{**start, "git": None, "plan": PLAN}])
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"learning_rate": rate}}))
    (folder / "log" / "rank0.txt").write_text(
        "2026-03-02 10:00:00,000 WARNING hunyuan_train.x: the disk is nearly full\n" * 3
        + "2026-03-02 10:00:00,000 INFO hunyuan_train.x: all is well\n"
        + "2026-03-02 10:00:00,000 WARNING py.warnings: deprecated\n"
    )
    return folder


def change_line(folder: Path, name: str, number: int, **fields: object) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | fields)
    (folder / name).write_text("\n".join(lines) + "\n")


def read_page(path: Path) -> dict[str, Any]:
    """The data in a frozen page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    return json.loads(found[1])

"""What a GPU is asked first runs scaled down on a CPU, and no part of it can end the others."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_first
from benchmarks.gpu_first import Step, list_steps, run_steps
from benchmarks.gpu_parts import (
    PARTS,
    SMALL,
    Scale,
    attention_kernels,
    combining,
    decoding,
    expert_counts,
    expert_kernels,
    fused_kernels,
    gating,
    machine,
    products,
    staging,
    update,
    write_table,
)
from hunyuan_train.config.deepspeed_file import read_deepspeed_file
from hunyuan_train.launcher.machine import count_gpus
from tests.clients.environments import client_python, find_python

on_cpu = pytest.mark.skipif(count_gpus() > 0, reason="scaled down only where there is no GPU")
SCALES = [
    pytest.param(SMALL, marks=on_cpu, id="small"),
    pytest.param(Scale(repeats=1), marks=pytest.mark.gpu, id="gpu"),
]


def numbers(text: str) -> list[float]:
    return [float(one) for one in text.split(", ")]


@pytest.mark.parametrize("scale", SCALES)
def test_every_attention_backend_is_right_and_repeats_when_asked(scale: Scale) -> None:
    _, *rows = attention_kernels(scale)
    assert rows
    for name, differences, _, is_deterministic, spent in rows:
        assert max(numbers(differences)) < (1e-5 if scale.is_small else 0.1), name
        assert is_deterministic == "yes", name
        assert float(spent) > 0


@pytest.mark.parametrize("scale", SCALES)
def test_fused_kernels_are_compared_with_what_they_replace(scale: Scale) -> None:
    _, *rows = fused_kernels(scale)
    assert [name for name, *_ in rows] == ["RMSNorm", "rope", "SwiGLU"]
    for name, differences, plain, fused in rows:
        assert float(plain) > 0, name
        if scale.is_small:
            assert (differences, fused) == ("there is no GPU", "")
        else:
            assert max(numbers(differences)) < 0.1, name


@pytest.mark.parametrize("scale", SCALES)
def test_experts_with_no_token_and_with_seven_are_those_of_the_plain_loop(scale: Scale) -> None:
    _, *rows, (_, is_same, *_) = expert_kernels(scale)
    assert [name for name, *_ in rows] == ["separate gate and up", "gate_up_impl fused"]
    for name, errors, is_finite, spent, _ in rows:
        assert max(numbers(errors)) < (1e-5 if scale.is_small else 0.02), name
        assert is_finite == "True"
        assert float(spent) > 0
    assert is_same == "yes"


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("skew", [2.0, 3.0])
def test_rows_are_dealt_out_as_said(skew: float, multiple: int) -> None:
    for scale in (SMALL, Scale()):
        counts = expert_counts(scale, skew, multiple=multiple)
        assert sum(counts) == scale.tokens * scale.top_k
        assert len(counts) == scale.experts
        assert min(counts) == 0
        assert counts.count(7 if multiple == 1 else 8) == 1
        assert max(counts) == pytest.approx(skew * sum(counts) / scale.experts, abs=multiple)


@pytest.mark.parametrize("scale", SCALES)
def test_the_fused_sum_is_the_plain_one(scale: Scale) -> None:
    _, _, (name, errors, _) = combining(scale)
    assert name == "fused_weighted_sum"
    assert errors == "needs a GPU" if scale.is_small else max(numbers(errors)) < 0.1


@pytest.mark.parametrize("scale", SCALES)
def test_rows_are_weighed_in_their_swiglu_as_the_formula_says(scale: Scale) -> None:
    _, _, (name, errors, _) = gating(scale)
    assert name.startswith("operators" if scale.is_small else "kernels")
    assert max(numbers(errors)) < 0.01


@pytest.mark.parametrize("scale", SCALES)
def test_every_form_of_experts_is_decoded_in_pieces_of_both_kinds(scale: Scale) -> None:
    _, *rows = decoding(scale)
    assert len(rows) == 12
    for name, piece, differing, plain, kernel, _ in rows:
        assert float(plain) > 0, name
        assert piece.split()[1] in ("rows", "columns")
        if scale.is_small:
            assert (differing, kernel) == ("needs a GPU", "")
        else:
            assert differing.startswith("0 of "), name
            assert float(kernel) < float(plain), name


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("part", [machine, products, update, staging])
def test_a_part_is_a_table(
    part: Callable[[Scale], Iterator[tuple[str, ...]]], scale: Scale
) -> None:
    lines = [line for line in write_table(part, scale) if line.startswith("|")]
    assert len(lines) > 3
    assert len({line.count("|") for line in lines}) == 1


def shell(name: str, command: str, seconds: float = 30) -> Step:
    return Step(name, ["sh", "-c", command], seconds)


def test_a_part_that_fails_or_hangs_ends_no_other_and_is_told(tmp_path: Path) -> None:
    steps = [
        shell("broken", "echo '| a | 1 |'; echo 'an illegal memory access' >&2; exit 3"),
        shell("hung", "echo half; sleep 1000 & wait", seconds=0.5),
        shell("whole", "echo '| b | 2 |'"),
    ]
    output = tmp_path / "results.md"
    began = time.monotonic()
    assert run_steps(iter(steps), output, minutes=1) == ["broken", "hung"]
    assert time.monotonic() - began < 20
    text = output.read_text()
    assert "**broken**: exit code 3" in text
    assert "| a | 1 |" in text
    assert "an illegal memory access" in text
    assert "**hung**: ended after 0 s" in text
    assert "half" in text
    assert "**whole**: done" in text


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    output = tmp_path / "results.md"
    assert run_steps(iter([shell("late", "true")]), output, minutes=0.1) == ["late"]
    assert "**late**: left out, 0.1 minutes are over" in output.read_text()


def test_all_that_is_asked_fits_the_time_and_the_fused_file_is_one_that_runs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_first, "find_spec", lambda _: None)
    steps = list(list_steps(tmp_path, is_small=False))
    assert [one.name for one in steps[: len(PARTS)]] == list(PARTS)
    settings = [one.environment.get("PYTORCH_ALLOC_CONF") for one in steps[len(PARTS) :]]
    assert settings == [f"expandable_segments:{one}" for one in (False, True, True)]
    engine = read_deepspeed_file(str(tmp_path / "fused.json"))
    assert engine["expert_parallel"].items() >= gpu_first.FUSED.items()


def run_all(repository: Path, python: str, output: Path) -> str:
    command = [python, "-m", "benchmarks.gpu_first", "--small", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "--minutes", "60"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output.read_text()


@pytest.mark.slow
@on_cpu
@pytest.mark.parametrize("environment", ["ours", "that of a GPU machine"])
def test_all_of_it_runs_scaled_down(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    python = sys.executable
    if environment != "ours":
        monkeypatch.setenv("PYTHON", find_python("3.12"))
        python = client_python("gpu_machine")
    text = run_all(repository, python, tmp_path / "results.md")
    named = re.findall(r"^\*\*(.*)\*\*: done", text, re.MULTILINE)
    assert named[: len(PARTS)] == list(PARTS)
    assert "slice, expandable_segments:True" in named
    assert "slice, gate_up_impl" in named
    assert "gloo:all_reduce [[3]], number 1 of group 0 (default_pg) | completed" in text

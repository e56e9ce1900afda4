"""`hunyuan-train rehearse`: what it refuses, and what it says."""

import json
import subprocess
import sys

import pytest

from hunyuan_train import cli
from hunyuan_train.rehearsal.guard import prepare_guard
from tests.clients.environments import client_python, find_python


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--skew", "0.5"], "skew is 0.5; it takes a number from 1"),
        (["--skew", "much"], "skew is much; it takes a number from 1"),
        (
            ["--micro_steps", "0"],
            "micro_steps is 0; it takes a number from 1 to 8, as many as a step",
        ),
        (
            ["--micro_steps", "9"],
            "micro_steps is 9; it takes a number from 1 to 8, as many as a step",
        ),
        (["--layers", "33"], "layers is 33; set it to a number from 1 to 32"),
        (
            ["--method", "lora", "--bf16", "false"],
            "bf16 is false, and GPUs are rehearsed in bfloat16",
        ),
        (["--gpus", "0"], "gpus is 0; set it to a number from 1"),
        (["--method", "full", "--recipe", "lora"], "method is full, and a recipe or config"),
        (["--optimiser", "lean"], "unknown flag; did you mean --optimizer"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(flags, message, capsys):
    assert cli.main(["rehearse", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_machine_without_a_compiler_is_told_so(tmp_path):
    with pytest.raises(cli.ConfigError, match=r"no-such-g\+\+ is needed: apt-get install"):
        prepare_guard(tmp_path, compiler="no-such-g++")


def test_help_answers_without_torch(repository):
    code = (
        "import sys; from hunyuan_train.cli import main\n"
        "try: main(['rehearse', '--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert "hunyuan-train rehearse --method full" in done.stdout
    assert not {"torch", "deepspeed", "transformers"} & set(done.stderr.split())


@pytest.mark.slow
def test_the_report_says_all_that_was_seen(capsys):
    flags = ["rehearse", "--method", "lora", "--layers", "1", "--max_seq_length", "1024"]
    assert cli.main(flags) == 0
    said = capsys.readouterr().out
    for words in (
        "allocated at the fullest moment of a step",
        "the plan is ",
        "by the line of code that asked for it",
        "expandable segments",
        "collectives of an optimizer step",
        "ranks that share experts of 8",
        "waits of the CPU for the GPU",
        "_wait_async_split_plan",
        "kernels of an optimizer step",
        "stood in for, and how often",
        "evaluation ",
        "generation ",
    ):
        assert words in said
    assert cli.main([*flags, "--json", "--steps_only"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["errors"] == []
    assert seen["host_memory"] < 2 * 10**9
    assert {"plan", "memory", "reserved_peaks", "stood_in", "not_seen"} <= seen.keys()


@pytest.mark.slow
def test_the_versions_of_a_gpu_machine_rehearse_the_same_bytes(repository, monkeypatch):
    # torch 2.11 as it is built for CUDA, without a driver, on Python 3.12.
    monkeypatch.setenv("PYTHON", find_python("3.12"))
    flags = ["--method", "lora", "--layers", "1", "--max_seq_length", "1024", "--json"]
    peaks = []
    for python in (sys.executable, client_python("gpu_machine")):
        done = subprocess.run(
            [python, "-m", "hunyuan_train", "rehearse", *flags],
            cwd=repository,
            stdout=subprocess.PIPE,
            check=True,
        )
        seen = json.loads(done.stdout)
        assert seen["errors"] == []
        peaks.append(seen["allocated_peak"])
    # Attention of torch 2.11 repeats keys and values for heads that share them.
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)

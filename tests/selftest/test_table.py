"""`hunyuan-train selftest`, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.selftest.commands import choose_processes
from hunyuan_train.selftest.parity_cases import list_cases
from tests.conftest import REPOSITORY

PROMISED = {
    1: {"ZeRO-2", "ZeRO-3", "AdamW", "AdamW in host memory", "adapters on attention", "dense"},
    2: {
        *("ZeRO-2", "ZeRO-3", "experts split, SGD", "one sample a row", "no clipping"),
        *("nothing recomputed", "selective recomputation", "activations in host memory"),
        *("router losses", "adapters on attention", "adapters everywhere"),
        *("AdamW in host memory", "output layer of its own", "experts in chunks", "rows shared"),
        "rows shared, adapters everywhere, experts in chunks",
        *("dense, rows shared", "dense, adapters everywhere"),
        *("dpo", "dpo, adapters everywhere", "dpo, adapters of an earlier run", "dpo, lean"),
        *("dpo, labels smoothed, cross entropy beside it", "ipo", "orpo", "simpo"),
        *("dpo, rows shared", "kto", "kto, rows shared, adapters on attention"),
        *("async_split_plan", "combine_impl", "gate_up_impl", "use_liger_kernel"),
    },
    4: {
        *("ZeRO-3", "experts split, SGD", "experts split twice"),
        *("rows shared by two, selective", "adapters on experts, split twice"),
        "rows shared by four, experts split twice, in chunks, in host memory",
        *("dpo", "kto", "dpo, rows shared, adapters on experts"),
    },
}


def selftest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hunyuan_train", "selftest", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


@pytest.mark.parametrize("processes", PROMISED)
def test_nothing_that_is_promised_is_missing(processes: int) -> None:
    cases = list_cases(processes, num_gpus=0)
    assert {case.name for case in cases} >= PROMISED[processes]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--processes", "4", "--only", "split twice"], id="4 processes"),
        pytest.param([], id="all", marks=pytest.mark.slow),
    ],
)
def test_every_case_equals_one_plain_process(arguments: list[str]) -> None:
    finished = selftest("--json", *arguments)
    verdicts = json.loads(finished.stdout)
    wrong = [verdict for verdict in verdicts if verdict["wrong"]]
    assert not wrong
    assert finished.returncode == 0
    assert all(bool(verdict["errors"]) != bool(verdict["not_run"]) for verdict in verdicts)
    found = {(verdict["processes"], verdict["case"]) for verdict in verdicts}
    part = arguments[-1] if "--only" in arguments else ""
    assert found == {
        (processes, case.name)
        for processes in {processes for processes, _ in found}
        for case in list_cases(processes, num_gpus=0)
        if part in case.name
    }


@pytest.mark.parametrize("recipe", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_recipe_is_checked_scaled_down(recipe: str) -> None:
    finished = selftest("--recipe", recipe, "--processes", "2")
    assert finished.returncode == 0, finished.stderr
    assert recipe in finished.stdout
    assert "equal" in finished.stdout
    assert "1/1" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "two"], "processes is two; give numbers, such as 1,2,4"),
        (["--processes", "0"], "a case needs 1 or more"),
        (["--only", "quantum"], "only is 'quantum', which is in no case's name"),
        (["--recipe", "none.yaml"], "neither a recipe of ours"),
    ],
)
def test_mistakes_are_explained_before_anything_is_compiled(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    assert main(["selftest", *arguments]) == 2
    assert not extensions.exists()
    assert message in " ".join(capsys.readouterr().err.split())


def test_gpus_bound_the_processes() -> None:
    machine = Machine(num_gpus=6, num_cores=64)
    assert choose_processes(None, machine) == [1, 2, 4, 6]
    assert choose_processes(None, Machine(num_gpus=0, num_cores=2)) == [1, 2, 4]

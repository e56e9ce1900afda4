"""The self-test turns red for every planted fault, in the column where it belongs."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from hunyuan_train.selftest import run
from hunyuan_train.selftest.oracle import RanksHere
from tests.selftest import faults

MOVED, SCALED = ("loss", "gradients", "weights"), ("loss", "gradients", "clip")


def run_with_fault(
    fault: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str = "experts split, SGD",
) -> tuple[int, list[dict]]:
    train = partial(faults.train_with_fault, fault)
    monkeypatch.setattr(run, "RanksHere", partial(RanksHere, train))
    exit_code = main(["selftest", "--processes", "2", "--only", case, "--json"])
    return exit_code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("fault", "columns"),
    [
        (faults.scale_expert_gradients_by_the_wrong_group, {"gradients", "clip", "weights"}),
        (faults.clip_by_the_norm_of_one_rank, {"clip", "weights"}),
        (faults.leak_between_packed_samples, {"loss", "gradients", "clip", "weights"}),
        (faults.predict_the_token_itself, {"loss", "gradients", "clip", "weights"}),
        (faults.forget_a_micro_batch, {"loss", "gradients", "clip", "weights"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found(
    fault: Callable[[], None],
    columns: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exit_code, [verdict] = run_with_fault(fault, monkeypatch, capsys)
    assert exit_code == 1
    assert columns <= set(verdict["wrong"])
    assert all(verdict["errors"][name] > 10 * verdict["tolerance"][name] for name in columns)


@pytest.mark.parametrize(
    "fault", [faults.lose_labels_at_bounds_of_parts, faults.attend_to_the_own_part_only]
)
def test_a_planted_fault_of_shared_rows_is_found(
    fault: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exit_code, [verdict] = run_with_fault(fault, monkeypatch, capsys, "rows shared, AdamW")
    assert exit_code == 1
    for name in ("loss", "gradients", "weights"):
        assert verdict["errors"][name] > 10 * verdict["tolerance"][name]


def test_a_planted_fault_of_the_product_for_gate_and_up_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, [verdict] = run_with_fault(
        faults.swap_gate_and_up, monkeypatch, capsys, "gate_up_impl"
    )
    assert exit_code == 1
    for name in MOVED:
        assert verdict["errors"][name] > 10 * verdict["tolerance"][name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "case", "columns"),
    [
        (faults.keep_adapters_on_in_the_reference, "dpo, adapters everywhere", MOVED),
        (faults.hold_a_started_adapter_to_the_bare_base, "dpo, adapters of an earlier run", MOVED),
        (faults.swap_sides_on_one_rank, "dpo, adapters everywhere", MOVED),
        (faults.count_the_tokens_of_prompts, "dpo, adapters everywhere", MOVED),
        # A multiple of the gradient is the same step once it is clipped.
        (faults.add_pairs_up_instead_of_their_mean, "dpo, adapters everywhere", SCALED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_of_preferences_is_found(
    fault: Callable[[], None],
    case: str,
    columns: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exit_code, [verdict] = run_with_fault(fault, monkeypatch, capsys, case)
    assert exit_code == 1
    for name in columns:
        assert verdict["errors"][name] > 10 * verdict["tolerance"][name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        faults.take_the_scale_of_the_next_block,
        faults.swap_codes_between_experts,
        faults.read_codes_that_an_earlier_base_left,
    ],
)
def test_a_planted_fault_of_quantised_experts_is_found(
    fault: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    case = "experts in nf4, adapters everywhere"
    if fault is faults.read_codes_that_an_earlier_base_left:
        fault = partial(fault, tmp_path)
    exit_code, [verdict] = run_with_fault(fault, monkeypatch, capsys, case)
    assert exit_code == 1
    for name in ("loss", "gradients", "weights"):
        assert verdict["errors"][name] > 10 * verdict["tolerance"][name]


def test_a_rank_that_dies_is_a_failed_case_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, [verdict] = run_with_fault(faults.die, monkeypatch, capsys)
    assert exit_code == 1
    assert verdict["failure"].endswith("this rank was told to die")
    assert verdict["errors"] is None

"""The cases of the selftest pass by the rules of a run."""

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.model import fused
from hunyuan_train.selftest.oracle import Verdict, check_cases
from hunyuan_train.selftest.parity_cases import list_cases, recipe_case
from hunyuan_train.selftest.report import as_data, count_verdicts, describe_verdict
from hunyuan_train.shipped import RECIPES


@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
def test_no_case_breaks_a_rule(num_processes):
    cases = list_cases(num_processes, num_gpus=0)
    assert {case.num_processes for case in cases} == {num_processes}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_can_be_checked(recipe):
    case = recipe_case(recipe, 2, num_gpus=0)
    assert case.run.optimizer.reference in ("adamw", "sgd")


def test_a_recipe_that_train_refuses_is_refused(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {fp16: true}\n")
    with pytest.raises(ConfigError, match="fp16 is true"):
        recipe_case(str(recipe), 2, num_gpus=0)


@pytest.mark.parametrize(
    ("num_processes", "names"),
    [
        (1, ["combine_impl", "use_liger_kernel"]),
        (2, ["combine_impl", "use_liger_kernel", "async_split_plan"]),
        (4, ["fused experts, split twice", "use_liger_kernel"]),
    ],
)
def test_what_runs_on_gpus_only_is_named_where_there_is_none(num_processes, names):
    cases = list_cases(num_processes, num_gpus=0)
    assert [case.name for case in cases if case.lack] == names
    assert all("there is no GPU" in case.lack for case in cases if case.lack)
    on_gpus = list_cases(num_processes, num_gpus=num_processes)
    assert {case.name for case in on_gpus if case.lack} <= {"use_liger_kernel"}
    assert "gate_up_impl" in {case.name for case in cases} or num_processes == 4


def test_fused_kernels_need_their_package(monkeypatch):
    monkeypatch.setattr(fused, "PACKAGE", "no_such_package")
    [case] = [one for one in list_cases(2, num_gpus=2) if one.lack]
    assert case.lack.startswith("use_liger_kernel: the package is not installed (pip install")
    monkeypatch.setattr(fused, "PACKAGE", "json")
    assert not any(one.lack for one in list_cases(2, num_gpus=2))


def test_a_case_that_cannot_run_is_neither_trained_nor_equal():
    lacking = [case for case in list_cases(2, num_gpus=0) if case.lack]
    verdicts = list(check_cases(lacking, lambda _: pytest.fail("there is nothing to run it on")))
    assert describe_verdict(verdicts[0]) == "not run (combine_impl: there is no GPU)"
    assert count_verdicts(verdicts) == "3 not run"
    assert [one["not_run"] for one in as_data(verdicts)] == [case.lack for case in lacking]
    assert not any(verdict.wrong for verdict in verdicts)


def test_a_recipe_is_checked_without_the_kernels_that_this_machine_lacks(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {use_liger_kernel: true}\n")
    case = recipe_case(str(recipe), 2, num_gpus=0)
    assert not case.lack
    assert not case.run.config.model.use_liger_kernel
    verdict = Verdict(case, case.tolerance, "", 1.0)
    assert describe_verdict(verdict) == "equal, without use_liger_kernel: there is no GPU"

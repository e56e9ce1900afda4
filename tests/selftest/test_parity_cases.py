"""The cases of the selftest pass by the rules of a run."""

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.selftest.parity_cases import list_cases, recipe_case
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

"""The schema for editors admits what the loader reads, and marks what it refuses."""

import json
from typing import Any

import pytest
import yaml

from hunyuan_train import cli
from hunyuan_train.config.json_schema import describe_file
from hunyuan_train.config.load import dump_text, load_config, read_yaml
from hunyuan_train.config.settings import FIELDS, SECTIONS
from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import RECIPES

fastjsonschema = pytest.importorskip("fastjsonschema")
RECIPE_FILES = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def check() -> Any:
    return fastjsonschema.compile(describe_file(), use_default=False)


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_it_admits_every_recipe_in_sections_and_flat(check: Any, path) -> None:
    sections = yaml.safe_load(path.read_text())
    check(sections)
    check({name: value for part in sections.values() for name, value in part.items()})
    check(yaml.safe_load(dump_text(load_config(["--recipe", path.stem]))))


GOOD = [
    {"train_data_file": ["a.jsonl", "b.jsonl:0.5"], "learning_rate": "1e-5"},
    {"optimizer": "lean", "lora": {"use_lora": True, "lora_target_modules": ["q_proj", "v_proj"]}},
    {"train": {"learning_rate": 1.0e-5}},
    {"model": None, "eval_data_file": "none"},
    {"recipe": "lora", "learning_rate": 1.0e-5},
]
BAD = [
    {"learning_rat": 1.0e-5},
    {"train": {"max_step": 5}},
    {"lora": {"learning_rate": 1.0e-5}},
    {"learning_rate": "fast"},
    {"optimizer": "sgdd"},
    {"num_processes": -1},
    {"packing": "maybe"},
    ["learning_rate"],
    {"recipe": "mine"},
    {"recipe": ["lora"]},
    {"recipe": "../recipes/lora"},
]


@pytest.mark.parametrize("content", GOOD, ids=str)
def test_it_admits_what_the_loader_takes(check: Any, content: Any, tmp_path) -> None:
    check(content)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    load_config([str(tmp_path / "my.yaml")])


@pytest.mark.parametrize("content", BAD, ids=str)
def test_it_marks_what_the_loader_refuses(check: Any, content: Any, tmp_path) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaException):
        check(content)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError):
        load_config([str(tmp_path / "my.yaml")])


def test_every_setting_is_described(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["schema"]) == 0
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert properties.keys() == {"recipe"} | FIELDS.keys() | SECTIONS.keys()
    assert "learning" in properties["learning_rate"]["description"]


def test_a_recipe_is_shown_as_it_is(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--recipe", "lora", "--show_recipe"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == (RECIPES / "lora.yaml").read_text().strip()
    assert read_yaml(RECIPES / "lora.yaml")
    assert cli.main(["train", "--show_recipe"]) == 2
    assert (
        "--show_recipe needs --recipe: full, long, lora, one_gpu, tiny" in capsys.readouterr().err
    )

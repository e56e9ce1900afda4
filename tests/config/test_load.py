from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from hunyuan_train.config.load import (
    dump_config,
    load_command_line,
    load_config,
    locate_input,
)
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import (
    COMMAND_FLAGS,
    FIELDS,
    ONCE_IN_TRAIN,
    SECTION_OF,
    SECTIONS,
    with_settings,
)
from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import RECIPES, TOP_LEVEL


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_each_flag_maps_to_exactly_one_field():
    names = [field.name for section in SECTIONS.values() for field in fields(section)]
    assert len(names) == len(set(names))
    assert not set(names) & set(COMMAND_FLAGS)
    assert [field.name for field in fields(RunConfig)] == list(SECTIONS)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = write(tmp_path, "train: {learning_rate: 1e-4, seed: 7}\nlora: {use_lora: true}\n")
    config = load_config(["--config", path, "--seed", "8"])
    assert config.optimizer.learning_rate == 1e-4
    assert config.train.seed == 8
    assert config.lora.use_lora
    assert config.logs.logging_steps == RunConfig().logs.logging_steps


@pytest.mark.parametrize(
    ("arguments", "is_packed"),
    [
        (["--packing"], True),
        (["--packing", "false"], False),
        (["--packing=False"], False),
        (["--no_packing"], False),
        (["--no-packing"], False),
        (["--packing", "--seed", "3"], True),
    ],
)
def test_a_switch_is_given_in_any_of_its_forms(arguments, is_packed):
    assert load_config(arguments).data.packing is is_packed


def test_dashes_and_equals_signs_are_read_too():
    config = load_config(["--learning-rate=2e-5", "--max_steps", "-1", "--run_name=a=b"])
    assert config.optimizer.learning_rate == 2e-5
    assert config.train.max_steps == -1
    assert config.logs.run_name == "a=b"


def test_dry_run_is_no_setting():
    assert load_command_line(["--dry_run"]).is_dry_run
    assert load_command_line(["--dry-run"]).is_dry_run
    assert not load_command_line([]).is_dry_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--lora_rnk", "8"],
            r"--lora_rnk: unknown flag; did you mean --lora_rank \(section lora\)",
        ),
        (["--zzzz", "8"], r"--zzzz: unknown flag; `hunyuan-train train --help` lists all"),
        (["--learning_rate"], "--learning_rate: it needs a value"),
        (["small"], "unexpected 'small'; settings are given as --name value"),
        (["--seed", "1", "--seed", "2"], "seed is given twice, as 1 and as 2"),
        (["--seed", "1", "--seed=one"], "seed is given twice"),
        (["--packing", "--no_packing"], "packing is given twice, as true and as false"),
        (
            ["--recipe", "huge"],
            r"huge is neither a recipe of ours \(full, long, lora, one_gpu, tiny\)",
        ),
        (["--recipe", "tiny", "--config", "a.yaml"], "--recipe and --config both name a file"),
        (["--max_steps", "0"], "max_steps is 0; set a number of steps, or -1"),
        (["--num_train_epochs", "0"], "num_train_epochs is 0 and max_steps is -1"),
        (["--warmup_ratio", "2"], "warmup_ratio is 2.0; set it to a number from 0 to 1"),
        (["--logging_steps", "0"], "logging_steps is 0; set it to 1 or more"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(arguments)


def test_a_flag_repeated_with_the_same_value_is_no_conflict():
    assert load_config(["--seed", "1", "--seed", "1"]).train.seed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {seed: 1}", "trian: unknown section; did you mean train"),
        ("train: {sead: 1}", r"unknown key train.sead; did you mean seed \(section train\)"),
        ("train: {lora_rank: 8}", "lora_rank belongs in section lora, not train"),
        ("train: 3", "train: a section, which must hold"),
        ("[1, 2]", "holds no sections; it needs some of model, data, train"),
        ("train: {seed: [1}", "is not YAML"),
        ("train: {seed: [1]}", r"seed is \[1\]; it takes a whole number"),
        ("train: {run_name: 7}", "run_name is 7; it takes text"),
        ("train:\n  seed: 1\n  seed: 2\n", r"run.yaml:3: seed is given twice; keep one"),
        ("train: {seed: 1}\ntrain: {max_steps: 2}\n", r"run.yaml:2: train is given twice"),
        (
            "train: {min_lr: 0}\noptimizer: {min_lr: 0}\n",
            "min_lr is given twice, in train and in optimizer",
        ),
        ("optimizer: {seed: 1}", "seed belongs in section train, not optimizer"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(["--recipe", write(tmp_path, text)])


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_dumped_config_reads_back_the_same(tmp_path, recipe):
    config = load_config(["--recipe", recipe])
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_a_file_from_before_the_section_train_was_divided_reads_the_same(tmp_path):
    config = load_config(["--recipe", "full", "--run_name", "old", "--resume_from_checkpoint=auto"])
    sections = asdict(config)
    for name in ONCE_IN_TRAIN:
        sections["train"] |= sections.pop(name)
    assert load_config(["--config", write(tmp_path, yaml.safe_dump(sections))]) == config


def test_files_of_the_repository_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(TOP_LEVEL / "ds_configs/zero3.json")
    assert locate_input("ds_configs/zero3.json") == shipped
    assert locate_input("mine.jsonl:2,ds_configs/zero3.json:3") == f"mine.jsonl:2,{shipped}:3"
    climbing = f"../{TOP_LEVEL.name}/ds_configs/zero3.json"
    assert locate_input(climbing) == climbing
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero3.json").touch()
    assert locate_input("ds_configs/zero3.json") == "ds_configs/zero3.json"


@pytest.mark.parametrize("arguments", [[], ["--model_name_or_path", "tiny"], ["empty.yaml"]])
def test_a_default_names_the_shipped_file_in_any_folder(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").touch()
    config = load_config(arguments)
    assert config.data.train_data_file == str(TOP_LEVEL / "data/tiny_train.jsonl")


def test_every_setting_has_a_help_text():
    for section in SECTIONS.values():
        assert all(field.metadata["help"] for field in fields(section))
    assert set(SECTION_OF.values()) == set(SECTIONS)


TEXT_SETTINGS = sorted(name for name, field in FIELDS.items() if "str" in str(field.type))


@pytest.mark.parametrize("name", TEXT_SETTINGS)
@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\0", "\u2028"])
def test_no_text_holds_a_line_break(name, character):
    with pytest.raises(ConfigError, match=name):
        with_settings(RunConfig(), **{name: f"x{character}#SBATCH --wrap=evil"})


def test_a_file_changes_the_recipe_that_it_names(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("recipe: tiny\nnum_train_epochs: 2\noptimizer: {learning_rate: 1.0e-3}\n")
    command = load_command_line([str(path), "--seed", "7"])
    tiny, config = load_config(["--recipe", "tiny"]), command.config
    assert config.optimizer.learning_rate == 1e-3
    assert (config.train.num_train_epochs, config.train.seed) == (2, 7)
    assert config.train.max_steps != tiny.train.max_steps, "the recipe's steps give way to epochs"
    assert config.data == tiny.data
    assert "train_data_file" not in command.given, "which is the recipe's"
    assert not command.is_demo
    path.write_text("recipe: mine\n")
    with pytest.raises(
        ConfigError, match=r"my.yaml: recipe is 'mine'; .*: full, long, lora, one_gpu, tiny"
    ):
        load_config([str(path)])
    path.write_text("recipe:\nseed: 3\n")
    assert load_config([str(path)]).data == load_config([]).data


@pytest.mark.parametrize("words", ["lora", "--recipe lora", "--dry_run lora", "lora --dry_run"])
def test_a_recipe_of_ours_may_stand_alone_too(words: str) -> None:
    assert load_config(words.split()) == load_config(["--recipe", "lora"])
    command = load_command_line([*words.replace("--dry_run", "").split(), "--show_recipe"])
    assert command.recipe == (RECIPES / "lora.yaml").read_text()
    assert load_command_line(["--show_recipe", "lora"]).recipe == command.recipe


@pytest.mark.parametrize("path", ["$HOME/x", "${HOME}/x", "$RUNS"])
def test_a_variable_that_no_shell_replaced_is_told(path, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"train: {{output_dir: '{path}'}}\n")
    with pytest.raises(ConfigError, match=r"output_dir is .*variables are not replaced.*~/"):
        load_config(["--config", str(tmp_path / "mine.yaml")])
    assert load_config(["--output_dir", "runs/$5 a"]).train.output_dir == "runs/$5 a"


def test_a_folder_of_a_run_in_the_place_of_its_settings_is_told(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"is a folder.*settings in it: .*/config\.yaml"):
        load_config(["--config", str(tmp_path)])

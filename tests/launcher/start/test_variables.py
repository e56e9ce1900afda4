"""What somebody set for a run and nothing would read is refused, and half a request too."""

import pytest

from hunyuan_train.config.load import load_command_line
from hunyuan_train.config.settings import SECTION_OF
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.variables import (
    MEANT,
    READ,
    SCRIPT_VARIABLES,
    check_model_and_data,
    check_variables,
)

# As the demo, which a mistyped variable would start.
DEMO = ("--recipe", "tiny")
# Of shells, schedulers, clusters and libraries.
FOREIGN = {
    **{"PATH": "/bin", "HOME": "/root", "HISTFILE": "h", "MODULEPATH": "/m", "NODE_PATH": "/n"},
    **{"SSH_CONNECTION": "a", "SSH_CLIENT": "a", "SSH_TTY": "t", "SSH_AUTH_SOCK": "s"},
    **{"SLURM_JOB_ID": "1", "SLURM_NODELIST": "n", "RUN_NAME": "r", "CACHE_DIR": "/c"},
    **{"MASTER_ADDR": "a", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "NODE_RANK": "0"},
    **{"HF_HOME": "/h", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MODE": "x", "SEED": "1"},
    **{
        "NODE_IP": "10.0.0.1",
        "NODES": "2",
        "NODE": "/usr/bin/node",
        "HOSTNAME": "h",
        "HOSTTYPE": "x",
        "http_proxy": "p",
    },
}


def check(environment, *arguments):
    check_variables(environment, load_command_line(arguments))


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TRAIN_FILES", "TRAIN_FILE"),
        ("MODEL_NAME", "MODEL_PATH"),
        ("MODELPATH", "MODEL_PATH"),
        ("MODLE_PATH", "MODEL_PATH"),
        ("model_path", "MODEL_PATH"),
        ("DATASET", "TRAIN_FILE"),
        ("OUTPUT_PATH", "OUTPUT_DIR"),
        ("TOKENISER_PATH", "TOKENIZER_PATH"),
        ("NODE_IP_LISTS", "NODE_IP_LIST"),
        ("NODE_IPS", "NODE_IP_LIST"),
        ("NODE_LIST", "NODE_IP_LIST"),
        ("NODES_IP_LIST", "NODE_IP_LIST"),
        ("HOST_IP_LIST", "NODE_IP_LIST"),
        ("HOST_FILE", "HOSTFILE"),
        ("GPUS", "NUM_PROCESSES"),
        ("NGPUS", "NUM_PROCESSES"),
        ("NUM_GPUS", "NUM_PROCESSES"),
        ("RECIPES", "RECIPE"),
    ],
)
@pytest.mark.parametrize("value", ["something", ""])
def test_a_variable_that_resembles_one_is_refused_with_its_name(variable, value, meant):
    arguments = () if meant == "RECIPE" else DEMO
    with pytest.raises(ConfigError, match=rf"{variable} is set, .* did you mean {meant}\?"):
        check({**FOREIGN, variable: value}, *arguments)
    check(
        {**FOREIGN, variable: value},
        *arguments,
        f"--{READ[meant]}",
        "full" if arguments == () else "8",
    )


@pytest.mark.parametrize("name", sorted(name for name in SECTION_OF if "_" in name))
def test_a_setting_as_a_variable_is_refused_with_its_flag(name):
    variable = name.upper()
    if variable in (*READ, *MEANT, "CACHE_DIR", "RUN_NAME"):
        pytest.skip("has a meaning of its own")
    with pytest.raises(ConfigError, match=rf"{variable} is set, .*--{name} 7"):
        check({variable: "7"}, *DEMO)


def test_variables_of_other_programs_do_not_matter():
    check(FOREIGN, *DEMO)


def test_every_variable_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        check({"TRAIN_FILES": "", "MODEL_NAME": "m", "LEARNING_RATE": "1"}, *DEMO)
    assert all(word in str(caught.value) for word in ("TRAIN_FILES", "MODEL_NAME", "LEARNING_RATE"))


@pytest.mark.parametrize("variable", sorted(SCRIPT_VARIABLES))
def test_a_variable_of_the_script_is_refused_by_the_command(variable):
    with pytest.raises(ConfigError, match=f"{variable} is set, which train.sh alone reads"):
        check({variable: "value"})


def test_a_variable_that_is_empty_by_mistake_does_not_start_the_demo():
    with pytest.raises(ConfigError, match="MODEL_PATH is set to nothing"):
        check({"MODEL_PATH": ""}, *DEMO)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return str(folder)


def ask(*arguments):
    check_model_and_data(load_command_line(arguments))


@pytest.mark.parametrize("recipe", ["tiny", "lora", "full", "long"])
def test_the_users_model_is_not_trained_on_the_demo(model, recipe, tmp_path):
    flags = ("--recipe", recipe, "--model_name_or_path", model)
    with pytest.raises(ConfigError, match=r"no dialogues are given.*--train_data_file"):
        ask(*flags)
    ask(*flags, "--train_data_file", "data/tiny_train.jsonl")
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: {model}\ntrain_data_file: my.jsonl\n")
    ask(str(file))


@pytest.mark.parametrize("name", ["train_data_file", "eval_data_file", "tokenizer_name_or_path"])
def test_the_users_data_do_not_train_the_demos_model_unasked(name):
    with pytest.raises(ConfigError, match=rf"{name} is x.jsonl, and no model is given"):
        ask(f"--{name}", "x.jsonl")
    ask(f"--{name}", "x.jsonl", "--recipe", "tiny")
    ask(f"--{name}", "x.jsonl", "--model_name_or_path", "tiny")


def test_the_demo_may_be_changed():
    ask("--eval_data_file", "none", "--max_steps", "3")

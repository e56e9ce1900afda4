"""Refuses what was set for this run and would be passed over: variables, a model without data.

`train.sh` turns a few variables into flags, and `cluster.py` reads those of job scripts. One that
only resembles them would be passed over, and the bundled demo be trained instead of what was asked.
A variable that is meant for another program does not matter once its flag is given. So it is with a
model that is given without dialogues, or the reverse: the other half would be the demo's.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from hunyuan_train.config.load import CommandLine
from hunyuan_train.config.settings import SECTION_OF
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.hub.names import parse_model_name
from hunyuan_train.launcher.cluster.cluster import VARIABLES
from hunyuan_train.launcher.rank.environment import deterministic_environment

# Variables of train.sh, and the flag that each becomes.
SCRIPT_VARIABLES = {
    "RECIPE": "recipe",
    "MODEL_PATH": "model_name_or_path",
    "TOKENIZER_PATH": "tokenizer_name_or_path",
    "TRAIN_FILE": "train_data_file",
    "EVAL_FILE": "eval_data_file",
    "OUTPUT_DIR": "output_dir",
    "HUB": "hub",
    "NUM_PROCESSES": "num_processes",
}
# Unset, they leave the demo's; set to nothing, somebody's script lacks what it meant to give.
NEVER_EMPTY = ("MODEL_PATH", "TOKENIZER_PATH", "TRAIN_FILE", "EVAL_FILE", "OUTPUT_DIR")
READ = {**SCRIPT_VARIABLES, **{variable: name for name, variable in VARIABLES.items()}}
READ |= {"HOST_GPU_NUM": "num_processes"}
MEANT_TOGETHER = {
    "MODEL_PATH": "BASE_MODEL HF_MODEL MODEL MODEL_DIR MODEL_FOLDER MODEL_ID MODEL_NAME "
    "MODEL_NAME_OR_PATH PRETRAINED_MODEL",
    "TOKENIZER_PATH": "TOKENIZER TOKENIZER_DIR TOKENIZER_NAME TOKENIZER_NAME_OR_PATH",
    "TRAIN_FILE": "DATA DATASET DATASET_PATH DATA_FILE DATA_PATH TRAINING_FILE TRAIN_DATA "
    "TRAIN_DATASET TRAIN_DATA_FILE TRAIN_DATA_PATH TRAIN_PATH",
    "EVAL_FILE": "EVAL_DATA EVAL_DATASET EVAL_DATA_FILE EVAL_PATH TEST_FILE VALID_FILE "
    "VALIDATION_FILE VAL_FILE",
    "OUTPUT_DIR": "OUTPUT OUTPUT_FOLDER OUTPUT_PATH OUT_DIR SAVE_DIR SAVE_PATH",
    "NUM_PROCESSES": "GPUS GPUS_PER_NODE NGPU NGPUS NPROC NPROC_PER_NODE NUM_GPU NUM_GPUS "
    "NUM_PROCS N_GPU N_GPUS",
    "NODE_IP_LIST": "HOST_IPS HOST_IP_LIST HOST_LIST IP_LIST NODE_IPS NODE_LIST NODELIST",
}
MEANT = {word: name for name, words in MEANT_TOGETHER.items() for word in words.split()}
LEAST_LIKENESS = 0.88  # TRAIN_FILES has 0.95; HISTFILE has 0.88 of HOSTFILE, NODE_PATH 0.84
OF_OTHER_PROGRAMS = ("CACHE_DIR", "HISTFILE", "RUN_NAME")


def check_variables(environment: Mapping[str, str], command: CommandLine) -> None:
    """Refuse variables that nothing reads, beside what the command line says.

    Raises:
        ConfigError: naming all of them, and what was meant; or one that --deterministic forbids.
    """
    if command.config.train.deterministic:
        deterministic_environment(environment)
    found = list(find_unread(environment, command))
    if found:
        raise ConfigError("; ".join(found))


def find_unread(environment: Mapping[str, str], command: CommandLine) -> Iterator[str]:
    """What is wrong with each variable, with the remedy."""
    for variable in sorted(environment):
        if variable in SCRIPT_VARIABLES:
            flag = SCRIPT_VARIABLES[variable]
            if flag in command.given:
                continue
            if environment[variable]:
                yield f"{variable} is set, which train.sh alone reads; give --{flag} instead"
            elif variable in NEVER_EMPTY:
                yield f"{variable} is set to nothing; give it a value, or unset it"
            continue
        nearest = find_read_variable(variable)
        if nearest and nearest not in environment and READ[nearest] not in command.given:
            yield (
                f"{variable} is set, and nothing reads it; did you mean {nearest}? If it is for "
                f"another program, give --{READ[nearest]} or unset it"
            )
        name = variable.lower()
        is_setting = variable.isupper() and "_" in name and name in SECTION_OF
        is_for_us = is_setting and variable not in (*OF_OTHER_PROGRAMS, *READ, *MEANT)
        if is_for_us and name not in command.given:
            yield (
                f"{variable} is set, and settings are flags: give --{name} "
                f"{environment[variable] or 'VALUE'}, or unset it"
            )


def find_read_variable(variable: str) -> str | None:
    """The variable that was meant by one that nothing reads."""
    word = variable.upper()
    if variable in READ or word in OF_OTHER_PROGRAMS:
        return None
    if word in READ or word in MEANT:
        return word if word in READ else MEANT[word]
    close = get_close_matches(word, list(READ), n=1, cutoff=LEAST_LIKENESS)
    return close[0] if close else None


def check_model_and_data(command: CommandLine) -> None:
    """Refuse to train the user's model on the demo's dialogues, or the demo's model on the user's.

    Raises:
        ConfigError: one of them was given without the other.
    """
    model, data = command.config.model, command.config.data
    given = command.given
    is_own = model.model_name_or_path not in PRESETS and (
        Path(model.model_name_or_path).is_dir()
        or parse_model_name(model.model_name_or_path, hub=command.config.launch.hub) is not None
    )
    if is_own and "train_data_file" not in given:
        raise ConfigError(
            f"model_name_or_path is {model.model_name_or_path}, and no dialogues are given, so it "
            "would be trained on the bundled demo's; give yours with --train_data_file "
            "(TRAIN_FILE of train.sh)"
        )
    own = {
        "train_data_file": data.train_data_file,
        "eval_data_file": data.eval_data_file,
        "tokenizer_name_or_path": model.tokenizer_name_or_path,
    }
    chooses_model = given & {"recipe", "config", "model_name_or_path"}
    for name, value in own.items():
        if name in given and value is not None and not chooses_model:
            raise ConfigError(
                f"{name} is {value}, and no model is given; give its folder with "
                "--model_name_or_path (MODEL_PATH of train.sh), or take the demo's tiny one, whose "
                "weights are random, with --recipe tiny (RECIPE=tiny)"
            )

"""What `train` refuses before anything starts, and that `plan` refuses the same."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import choose_num_processes
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules import logs, processes
from hunyuan_train.config.settings import SECTION_OF
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.planner.command import run_plan

FILES = ("zero2", "zero3", "zero3_ep", "zero3_ep_offload", "zero3_offload")
# Values of settings that rules join: some that go together, and some that never do.
VALUES: dict[str, list[object]] = {
    "bf16": ["auto", "true", "false"],
    "fp16": ["true"],
    "min_lr": [0, 1e-6, 1],
    "lr_scheduler_type": ["cosine_with_min_lr", "linear", "wsd", "constant"],
    "max_steps": [3, 10],
    "warmup_steps": [2, 5],
    "optimizer": ["auto", "adamw", "lean", "offload", "sgd"],
    "deepspeed": ["auto", *(f"ds_configs/{name}.json" for name in FILES)],
    "num_processes": [2, 6, 8, 9],
    "expert_parallel_size": ["auto", 1, 2, 3, 8],
    "sequence_parallel_size": [1, 2, 3, 8],
    "max_seq_length": [16, 64, 4096],
    "per_device_train_batch_size": [1, 2],
    "gradient_checkpointing": ["true", "false", "selective"],
    "activation_offload": ["true"],
    "moe_chunks": [1, 4, 100],
    "use_lora": ["true"],
    "lora_rank": [8, 12],
    "lora_dropout": [0.1],
    "use_dora": ["true"],
    "lora_target_modules": ["attention", "experts", "shared_mlp", "router", "all", "gate_proj"],
    "freeze": ["*.mlp.experts.*", "*.mlp.gate.wg.weight", "*.nothing.*", "*"],
    "freeze_router": ["true"],
    "train_attention_params_only": ["true"],
    "router_guardian": ["off", "warn", "freeze_router"],
    "eval_fraction": [0.1],
    "eval_steps": [0, 5],
    "eval_generate": [8],
    "save_best": ["true"],
    "early_stopping_patience": [2],
    "metric_for_best_model": ["eval_loss", "eval_set_f1", "loss"],
    "needle_lengths": ["1024", "12", "1024,8192"],
    "report_to": ["none", "wandb", "all", "neptune"],
    "profile": ["3", "10-12", "9-3"],
    "use_flash_attn": ["auto", "true", "false"],
}
EIGHT_GPUS = Machine(num_gpus=8, num_cores=8)


def pick(chosen: dict[str, int]) -> dict[str, object]:
    return {name: VALUES[name][number % len(VALUES[name])] for name, number in chosen.items()}


# What others need comes often, and few at a time: else all but none would go together.
NAMES = [*sorted(VALUES), *["use_lora", "eval_fraction", "eval_steps"] * 4]
some_settings = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 99), max_size=5).map(pick)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """The machines that are planned for have all packages, whatever this one has."""
    for module in (logs, processes):
        monkeypatch.setattr(module, "find_spec", lambda name: True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def write_settings(folder: Path, values: dict[str, object]) -> str:
    """A file of settings for the tiny model, as `--config` takes it."""
    values = {"model_name_or_path": "tiny", "output_dir": str(folder / "run"), **values}
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        sections.setdefault(SECTION_OF[name], {})[name] = value
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def plan(*flags: str) -> dict[str, Any]:
    """The answer of `plan` about machines with eight GPUs."""
    said = StringIO()
    with redirect_stdout(said):
        run_plan(["--gpus", "8", "--json", *flags])
    return json.loads(said.getvalue())


def train(config_file: str, num_nodes: int = 1) -> ResolvedRun:
    """What `train --dry_run` checks of settings on the same machines."""
    config = load_config(["--config", config_file])
    slots = [choose_num_processes(config, EIGHT_GPUS)] * num_nodes
    return resolve_here(config, machine=EIGHT_GPUS, slots=slots)


def refusal(command: Callable[..., object], *arguments: str) -> str | None:
    """What a command refuses settings with; None where it takes them."""
    try:
        command(*arguments)
    except ConfigError as error:
        return str(error)
    return None


@given(values=some_settings)
def test_plan_and_train_refuse_the_same_settings_in_the_same_words(folder, values):
    config_file = write_settings(folder, values)
    assert refusal(plan, "--config", config_file) == refusal(train, config_file)


@settings(max_examples=40)  # each may search for long
@given(values=some_settings, memory=st.sampled_from(["80", "1", "0.3"]))
def test_the_settings_that_plan_writes_are_taken_by_train_and_fit(folder, values, memory):
    config_file, fitting = write_settings(folder, values), folder / "fits.yaml"
    fitting.unlink(missing_ok=True)
    flags = ("--gpu_memory", memory, "--config")
    with suppress(ConfigError):  # settings that do not go together, or that nothing makes fit
        found = plan(*flags, config_file, "--fit", str(fitting))
    if not fitting.exists():
        return
    nodes = [flag.split()[1] for flag in found["nearest"] or [] if flag.startswith("--nodes")]
    train(str(fitting), *map(int, nodes))
    assert plan(*flags, str(fitting), "--nodes", *(nodes or ["1"]))["fits"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_lr": 1}, "min_lr is 1.0, above learning_rate"),
        ({"fp16": True}, "fp16 is true, and this run computes in"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model is loss; it must begin with"),
        (
            {"freeze": "*.mlp.gate.wg.weight", "router_guardian": "freeze_router"},
            "router_guardian is freeze_router, but this run does not train the routers",
        ),
        ({"profile": "9-3"}, "profile is 9-3; name a step or several in a row"),
    ],
)
def test_plan_writes_no_settings_that_train_refuses(tmp_path, values, message):
    config_file, fitting = write_settings(tmp_path, values), tmp_path / "fits.yaml"
    for command in (partial(plan, "--fit", str(fitting), "--config"), train):
        with pytest.raises(ConfigError, match=message):
            command(config_file)
    assert not fitting.exists()


def test_a_checkpoint_that_is_none_is_refused_before_anything_starts(tmp_path):
    config_file = write_settings(tmp_path, {"resume_from_checkpoint": str(tmp_path)})
    with pytest.raises(CheckpointError, match="which holds no manifest"):
        train(config_file)


def test_another_runs_folder_is_refused_by_train_alone(tmp_path):
    (tmp_path / "run/checkpoints/step-000020").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    config_file = write_settings(tmp_path, {})
    assert plan("--config", config_file)["fits"]
    with pytest.raises(ConfigError, match="which holds a run that reached step-000020"):
        train(config_file)

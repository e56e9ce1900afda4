import json
import subprocess
import sys

import pytest

from hunyuan_train import cli
from hunyuan_train.config.load import load_command_line, load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.variables import check_model_and_data

ON_EIGHT = ["plan", "--model", "a13b", "--gpus", "8", "--gpu_memory", "80"]


def test_a_refusal_shows_its_arithmetic_and_the_nearest_plan(capsys):
    assert cli.main([*ON_EIGHT, "--method", "full", "--optimizer", "adamw"]) == 1
    text = capsys.readouterr().out
    assert "does not fit: a GPU would need" in text
    assert "150 GiB of it for weights, gradients and optimizer" in text
    assert "the nearest plan that fits: --optimizer lean" in text


def test_every_component_of_the_fullest_moment_is_listed_with_its_source(capsys):
    flags = [*ON_EIGHT, "--method", "full", "--optimizer", "offload"]
    assert cli.main(flags) == 0
    text = capsys.readouterr().out
    for name in (
        *("weights", "gradients in flight", "dispatch buffers", "engine buckets"),
        *("fragmentation allowance", "gradients, pinned", "checkpoint", "tokens to experts"),
    ):
        assert f"  {name} " in text
    assert "  logits and loss " not in text  # which is another moment
    assert cli.main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["logits and loss"] > 0
    assert "tokens/s" in text
    assert text.endswith("fits\n")


def test_json_holds_the_same_for_programs(capsys):
    assert cli.main([*ON_EIGHT, "--method", "lora", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["device_peak"] > sum(plan["device"][name] for name in ("weights", "gradients"))
    assert plan["tokens_per_second"] > 0


def test_the_settings_that_fit_are_read_back_by_training_and_fit(tmp_path, capsys):
    fitting = tmp_path / "fits.yaml"
    flags = ["--method", "full", "--optimizer", "adamw", "--fit", str(fitting)]
    assert cli.main([*ON_EIGHT, *flags]) == 1
    wanted = f"--config {fitting} --model_name_or_path FOLDER --train_data_file FILE"
    assert f"settings written to {fitting}; train with them: hunyuan-train train {wanted}" in (
        capsys.readouterr().out
    )
    assert "train_data_file" not in fitting.read_text()  # it would be the demo's
    command = load_command_line(["--config", str(fitting), "--model_name_or_path", str(tmp_path)])
    with pytest.raises(ConfigError, match="no dialogues are given"):
        check_model_and_data(command)
    assert load_config(["--config", str(fitting)]).optimizer.optimizer == "lean"
    rest = [word for word in ON_EIGHT if word not in ("--model", "a13b")]
    assert cli.main([*rest, "--config", str(fitting)]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0"], "gpus is 0; set it to a number from 1 to 1024"),
        (["--gpus", "10" * 20], "; set it to a number from 1 to 1024"),
        (["--nodes", "1e12"], "nodes is 1000000000000; set it to a number from 1 to 10000"),
        (["--gpu_memory", "inf"], "gpu_memory is 'inf'; it takes a number"),
        (["--gpu", "h2"], "gpu is h2; speeds are known of a100, "),
        (["--gpu", "rtx3090"], "leave --gpu out and say how much memory it has, such as --gpu_mem"),
        (["--method", "full", "--recipe", "lora"], "method is full, and a recipe or config"),
        (["--expert_parallel_size", "3"], "expert_parallel_size is 3; it must divide"),
        (["--model", "./no/such"], "model_name_or_path is ./no/such"),
        (["--optimiser", "lean"], "unknown flag; did you mean --optimizer"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(flags, message, capsys):
    assert cli.main(["plan", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "lean"])
def test_it_answers_without_what_takes_seconds_to_import(repository, optimizer):
    code = (
        "import sys; from hunyuan_train.cli import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *ON_EIGHT, "--optimizer", optimizer],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {"torch", "transformers", "deepspeed", "accelerate", "datasets", "pyarrow", "matplotlib"}
    assert not slow & set(result.stderr.splitlines()[-1].split())

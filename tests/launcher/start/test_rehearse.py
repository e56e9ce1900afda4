"""A dry run for machines that are not at hand."""

import json
import re
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from hunyuan_train.launcher.start.rehearse import describe_time

REAL_JOB = ("--recipe", "lora", "--model_name_or_path", "a13b", "--eval_fraction", "0.1")
DATA = ("--train_data_file", "data/tiny_train.jsonl")


@pytest.fixture(autouse=True)
def laptop(monkeypatch, tmp_path):
    """A folder of its own, and none of the variables that name hosts."""
    monkeypatch.chdir(tmp_path)
    for name in ("NODE_IP_LIST", "HOSTFILE", "HOST_GPU_NUM"):
        monkeypatch.delenv(name, raising=False)


def dry_run(capsys, *flags):
    code = main(["train", *REAL_JOB, *DATA, "--dry_run", *flags])
    return code, capsys.readouterr().err


def test_the_real_job_is_rehearsed_with_the_figures_of_the_plan(capsys):
    machines = ("--gpus", "8", "--gpu", "h20", "--nodes", "2")
    code, said = dry_run(capsys, "--num_processes", "8", *machines)
    assert code == 0
    assert "16 on 2 hosts (8 each) on GPUs in bfloat16" in said
    assert "every check passed" in said
    assert list(Path().iterdir()) == []
    seconds = float(re.search(r"in all +([\d.]+) s\n", said)[1])
    [steps] = re.findall(r"  (\d+) steps of [\d.]+ s: ", said)
    whole = int(steps) * seconds
    assert f" s: {describe_time(whole)}, {describe_time(whole * 16, of='GPU ')}\n" in said
    assert main(["plan", *REAL_JOB, "--json", *machines]) == 0
    plan = json.loads(capsys.readouterr().out)
    # The bundled tokenizer is smaller than the model's own, and so is the output layer.
    assert seconds == pytest.approx(plan["step_seconds"], rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.001, "less than one second"),
        (32.96, "33 seconds"),
        (263.7, "4.4 minutes"),
        (3599, "60.0 minutes"),
        (3600, "1.0 hours"),
        (36_000_000, "10,000.0 hours"),
    ],
)
def test_a_time_is_said_in_a_unit_in_which_it_is_not_nothing(seconds, words):
    assert describe_time(seconds) == words
    assert describe_time(seconds, of="GPU ") == " GPU ".join(words.rsplit(" ", 1))


def test_every_gpu_is_known_and_the_slower_takes_longer(capsys):
    hours = {}
    for gpu in ("h20", "a800", "H800", "h100"):
        code, said = dry_run(capsys, "--gpus", "8", "--gpu", gpu, "--num_train_epochs", "2000")
        assert code == 0
        hours[gpu] = float(re.search(r"s: ([\d.,]+) hours", said)[1].replace(",", ""))
    assert hours["h20"] > hours["a800"] > hours["H800"] > hours["h100"]


def test_checkpoints_of_the_whole_run_count_against_the_disk(capsys):
    kept = ("--save_steps", "1", "--num_train_epochs", "10")
    code, said = dry_run(capsys, "--gpus", "8", *kept, "--save_total_limit", "0", "--disk", "3")
    assert code == 2
    assert "the disk would need" in said
    assert "10 checkpoints" in said
    assert "make room for" in said
    assert "smaller model" not in said
    code, said = dry_run(capsys, "--gpus", "8", *kept, "--save_total_limit", "1", "--disk", "3")
    assert code == 0
    assert "2 checkpoint(s)" in said


def test_what_does_not_fit_there_is_refused_with_the_nearest_plan(capsys):
    code, said = dry_run(capsys, "--gpus", "1", "--gpu", "h20", "--gpu_memory", "24")
    assert code == 2
    assert "this run does not fit on these machines: a GPU would need" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "h2"], "gpu is h2; speeds are known of a100, "),
        (["--gpus", "0"], "gpus is 0; set it to a number from 1 to 1024"),
        (["--num_processes", "9", "--gpus", "8"], "num_processes is 9, but"),
        (["--gpus", "8", "--node_ip_list", "a:8"], "node_ip_list is a:8, and the machines to plan"),
    ],
)
def test_a_mistake_is_one_paragraph(capsys, flags, message):
    code, said = dry_run(capsys, *flags)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_machines_are_described_for_a_dry_run_only(capsys):
    assert main(["train", *REAL_JOB, *DATA, "--gpus", "8"]) == 2
    assert "--gpus describes machines to plan for, with --dry_run" in capsys.readouterr().err

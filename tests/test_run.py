"""Whole runs of `train.py`: what they leave on disk, and that a resumed one is the same run."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hunyuan_train.checkpoint.errors import CheckpointError, NoRoomError, NotCopiedError
from hunyuan_train.config.load import load_config
from hunyuan_train.config.run_files import is_clocked
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.ending import judge
from hunyuan_train.launcher.exit_codes import RESUME, SUCCESS
from hunyuan_train.trainer.loop import TrainingResult
from tests.conftest import Finished, start_train

SETTINGS = (
    *("--recipe", "tiny", "--max_steps", "6", "--save_steps", "3", "--eval_steps", "3"),
    *("--logging_steps", "1"),
)
RESUMED = (*SETTINGS, "--resume_from_checkpoint", "auto", "--sample_answers", "false")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A run of six steps, checkpoints after three and six."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished = start_train(*SETTINGS, "--output_dir", str(folder), cwd=folder.parent)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_readme_names(whole_run: tuple[Path, Finished]) -> None:
    folder, finished = whole_run
    assert [numbers["step"] for numbers in read_metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= read_metrics(folder)[
        0
    ].keys()
    names = {name for numbers in read_metrics(folder) for name in numbers}
    groups = ("fast", "slow", "think", "answer", "markers")
    assert {f"{kind}_{group}" for kind in ("loss", "eval_loss") for group in groups} <= names
    assert "eval_loss" in read_metrics(folder)[2]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000006",
    ]
    assert (folder / "log" / "rank0.txt").exists()
    assert (folder / "log" / "rank1.txt").exists()
    assert load_config(["--config", str(folder / "config.yaml")]).train.max_steps == 6
    assert "fast mode" in finished.stderr
    assert "slow mode" in finished.stderr
    predicted = re.search(r"memory after 3 steps: .* planned \(([+-]\d+) %\)", finished.stderr)
    assert predicted
    assert abs(int(predicted[1])) < 25  # libraries' share differs from machine to machine
    assert str(folder / "export") in finished.stderr.replace("\n", "")


def test_the_export_loads_in_plain_transformers(whole_run: tuple[Path, Finished]) -> None:
    folder, _ = whole_run
    model = AutoModelForCausalLM.from_pretrained(folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    messages = [{"role": "user", "content": "/no_think Hello"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert output.shape[1] > ids["input_ids"].shape[1]


def cut_short(whole: Path, folder: Path) -> Path:
    """A copy of the run as if it had ended after its first checkpoint, its numbers ahead of it."""
    copy = folder / "run"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / "step-000006")
    shutil.rmtree(copy / "export")
    return copy


def without_clocks(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if not is_clocked(name)}


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(
    whole_run: tuple[Path, Finished], tmp_path: Path
) -> None:
    whole, _ = whole_run
    resumed = cut_short(whole, tmp_path)
    finished = start_train(*RESUMED, "--output_dir", str(resumed), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for ours, theirs in zip(read_metrics(resumed), read_metrics(whole), strict=True):
        assert without_clocks(ours) == without_clocks(theirs)
    for rank in (0, 1):
        file = Path("checkpoints", "step-000006", f"rank-{rank:05d}.safetensors")
        ours, theirs = load_file(resumed / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_run_goes_on_with_rows_shared_and_experts_in_chunks(
    whole_run: tuple[Path, Finished], tmp_path: Path
) -> None:
    whole, _ = whole_run
    folder = cut_short(whole, tmp_path)
    flags = (*RESUMED, "--output_dir", str(folder))
    sharing = ("--sequence_parallel_size", "2", "--moe_chunks", "2")
    refused = start_train(*flags, *sharing, cwd=tmp_path)
    assert "rows per step (2, now 1)" in refused.stderr
    questions = ("--eval_generate", "2", "--eval_max_new_tokens", "4")
    finished = start_train(
        *flags, *sharing, *questions, "--gradient_accumulation_steps", "2", cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert "experts split over 2, each row shared by 2" in finished.stderr
    assert "train = serve: the largest difference" in finished.stderr
    ours, theirs = read_metrics(folder), read_metrics(whole)
    for name in ("loss", "eval_loss", "eval_loss_slow", "grad_norm", "expert_imbalance"):
        expected = [numbers[name] for numbers in theirs if name in numbers]
        found = [numbers[name] for numbers in ours if name in numbers]
        assert found == pytest.approx(expected, rel=1e-4), name
    assert [numbers["tokens_seen"] for numbers in ours] == [
        numbers["tokens_seen"] for numbers in theirs
    ]
    assert ours[-1]["eval_answers"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("--num_processes", "1", "--per_device_train_batch_size", "2"),
        ("--expert_parallel_size", "1"),
        ("--deepspeed", "ds_configs/zero2.json"),
    ],
    ids=" ".join,
)
def test_a_run_goes_on_in_another_layout(
    whole_run: tuple[Path, Finished], tmp_path: Path, layout: tuple[str, ...]
) -> None:
    whole, _ = whole_run
    resumed = cut_short(whole, tmp_path)
    flags = (*RESUMED, "--output_dir", str(resumed), "--no_export")
    finished = start_train(*flags, *layout, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stderr
    for ours, theirs in zip(read_metrics(resumed), read_metrics(whole), strict=True):
        for name in theirs:
            if "loss" in name or name in ("grad_norm", "tokens_seen", "epoch"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (theirs["step"], name)


@pytest.mark.slow
def test_other_data_on_resume_is_refused_by_name_or_read_from_its_start(
    whole_run: tuple[Path, Finished], tmp_path: Path
) -> None:
    whole, _ = whole_run
    folder = cut_short(whole, tmp_path)
    flags = (*RESUMED, "--output_dir", str(folder))
    refused = start_train(*flags, "--history", "keep", cwd=tmp_path)
    assert refused.returncode == 2
    assert "other data: history was strip and is keep" in refused.stderr
    assert len(read_metrics(folder)) == 6  # nothing was touched
    flags = (*flags, "--history", "keep", "--ignore_data_change", "--no_export")
    finished = start_train(*flags, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    manifest = folder / "checkpoints" / "step-000006" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["state"]["position"] == {"epoch": 0, "row": 6}  # three steps of two rows
    assert content["fingerprints"]["data"]["settings"]["history"] == "keep"
    assert [numbers["step"] for numbers in read_metrics(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("is_complete", "is_saved", "uncopied", "kind"),
    [
        (True, True, None, None),
        (False, True, None, None),
        (False, True, "no route to host", None),  # it goes on here, and copies then
        (True, True, "no route to host", NotCopiedError),
        (True, False, None, NoRoomError),
        (False, False, "no route to host", NoRoomError),
    ],
)
def test_a_run_that_left_less_than_it_should_is_not_called_done(
    is_complete: bool, is_saved: bool, uncopied: str | None, kind: type[CheckpointError] | None
) -> None:
    result = TrainingResult(is_complete=is_complete, is_saved=is_saved, step=7)
    with pytest.raises(kind) if kind else nullcontext():
        assert judge(RunConfig(), result, uncopied) == (SUCCESS if is_complete else RESUME)

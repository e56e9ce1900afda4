"""A model on disk is judged by the questions of a file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hunyuan_train import cli
from tests.taught import CALL, FAST, SLOW, write_taught_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught_model(tmp_path_factory.mktemp("taught"))


def write_file(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def with_answer(record: dict, content: str) -> dict:
    *before, last = record["messages"]
    return {**record, "messages": [*before, {**last, "content": content}]}


def test_what_was_taught_is_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    # Of {Eight legs., tails} the model says one: 2 * 1 / (1 + 2).
    file = write_file(tmp_path / "q.jsonl", FAST, with_answer(SLOW, "Eight \u817f.; tails"), CALL)
    asked = ["evaluate", str(folder), file, "--max_new_tokens", "80"]
    assert cli.main([*asked, "--json", "--answers", str(answers)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert numbers["eval_answers"] == len(rows) == 5  # two turns of FAST, one of SLOW, two of CALL
    assert numbers["eval_exact_match_fast"] == numbers["eval_valid_format"] == 1
    assert numbers["eval_mode_leak_fast"] == numbers["eval_mode_leak_slow"] == 0
    assert numbers["eval_exact_match_slow"] == 0
    assert numbers["eval_set_f1_slow"] == pytest.approx(2 / 3)
    assert numbers["eval_set_f1"] == pytest.approx((4 + 2 / 3) / 5)
    assert {row["mode"] for row in rows} == {"fast", "slow"}
    assert cli.main([*asked, "--number", "2"]) == 0
    table = capsys.readouterr().out
    assert "2 answers" in table
    assert "0.667" in table


def test_an_answer_of_rows_behind_the_last_token_is_an_empty_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded, answers = tmp_path / "padded", tmp_path / "answers.jsonl"
    shutil.copytree(folder, padded)
    model = AutoModelForCausalLM.from_pretrained(padded, dtype=torch.float32)
    with torch.no_grad():  # one of two opposite rows is always the likeliest
        model.resize_token_embeddings(model.vocab_size + 64, mean_resizing=False)
        model.lm_head.weight[-2:] = torch.tensor([[1000.0], [-1000.0]])
    model.save_pretrained(padded)
    file = write_file(tmp_path / "q.jsonl", FAST)
    asked = ["evaluate", str(padded), file, "--max_new_tokens", "4", "--json"]
    assert cli.main([*asked, "--answers", str(answers)]) == 0
    assert json.loads(capsys.readouterr().out)["eval_exact_match"] == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["output"] for row in rows] == ["", ""]
    assert cli.main(["chat", str(padded), "--prompt", "Two?", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_trajectories_are_walked_with_the_recorded_results(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, call, result, answer = CALL["messages"]
    other = {**CALL, "messages": [asked, call, {**result, "content": "9"}, answer]}
    steps = tmp_path / "turns.jsonl"
    file = write_file(tmp_path / "q.jsonl", CALL, FAST, other)
    command = ["evaluate", str(folder), file, "--max_new_tokens", "60", "--trajectories", "5"]
    assert cli.main([*command, "--json", "--answers", str(steps)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["trajectories"] == 2
    assert numbers["trajectory_success"] >= 0.5  # what is said of a 9 was never taught
    assert numbers["eval_call_accuracy/count"] == 1
    rows = [json.loads(line) for line in steps.read_text().splitlines()]
    turns = [row for row in rows if "trajectory" in row]
    assert [row["turn"] for row in turns] == [1, 2, 1, 2]
    assert turns[0]["given"] == turns[0]["recorded"] == [["count", '{"of": "cats"}']]
    assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert "2 trajectories" in table
    assert "right calls of" in table


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--number", "0"], "set it to 1 or more"),
        (["--max_new_tokens", "0"], "set it to 1 or more"),
        (["--answers", "/nowhere/a.jsonl", "--number", "1", "--max_new_tokens", "1"], "/nowhere"),
        (["--trajectories", "3"], "drop --trajectories"),
        (["--trajectories", "-1"], "how many to walk through"),
        (["--needle_lengths", "512,999999"], "leave the longer ones out"),
    ],
)
def test_mistakes_are_named(
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_file(tmp_path / "q.jsonl", SLOW)
    assert cli.main(["evaluate", str(folder), file, *arguments]) == 2
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize("is_adapter", [False, True], ids=["model", "adapter"])
def test_texts_that_do_not_fit_are_refused_before_weights_are_read(
    folder: Path, tmp_path: Path, is_adapter: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"  # without weights, which would be what is complained of
    model.mkdir()
    shutil.copy(folder / "config.json", model)
    asked = ["evaluate", str(model), "--needle_lengths", "512,999999"]
    if is_adapter:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
        asked = ["evaluate", str(adapter), "--base", str(model), "--needle_lengths", "512,999999"]
    assert cli.main(asked) == 2
    assert "leave the longer ones out" in " ".join(capsys.readouterr().err.split())


def test_a_file_without_modes_and_a_folder_without_a_model_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = write_file(tmp_path / "q.jsonl", plain)
    assert cli.main(["evaluate", str(folder), file]) == 2
    assert "records with a mode" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path), file]) == 2
    assert "no model and no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["gone.jsonl"], "gone.jsonl does not exist; FILE takes files and folders"),
        (
            ["q.jsonl", "--metric", "gone.py:score"],
            "metric is gone.py:score, and there is no file gone.py",
        ),
        (["q.jsonl", "--metric", "gone"], "metric is gone; give a file"),
        (["q.jsonl", "--data_policy", "form"], "takes kind=action"),
    ],
)
def test_a_file_that_is_not_there_is_told_before_a_model_is_looked_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "q.jsonl", SLOW)
    assert cli.main(["evaluate", str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert "eval_metric" not in said
    assert "train_data_file" not in said


def test_what_the_errors_of_a_file_advise_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = write_file(tmp_path / "q.jsonl", plain, {"rows": 1})
    asked = ["evaluate", str(folder), file, "--mode", "fast", "--max_new_tokens", "2"]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    words = said[said.index("--data_policy ") :].partition(";")[0].split()
    assert cli.main([*asked, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval_answers"] == 1

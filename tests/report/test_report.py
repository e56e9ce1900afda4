"""The frozen page about runs: what it holds, and what it makes of damaged files."""

import errno
import itertools
import re
from pathlib import Path

import pytest

from hunyuan_train import cli, whole_file
from hunyuan_train.errors import ConfigError
from hunyuan_train.report.charts import list_charts
from hunyuan_train.report.closing import report_at_end
from hunyuan_train.report.commands import make_report
from hunyuan_train.report.page import SCRIPTS
from hunyuan_train.report.record import read_run
from hunyuan_train.shipped import render_command
from tests.report.runs import answer, change_line, make_run, read_page, write_lines


def test_a_page_holds_numbers_against_the_plan_and_what_went_wrong(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    data = read_page(folder / "report.html")
    [run] = data["overview"]["runs"]
    verdict = {one["about"]: one["text"] for one in run["verdict"]}
    assert "peaked at 61 GiB, -5% beside the plan's 64" in verdict["memory"]
    assert verdict["speed"] == "1,505 tokens a second, 75% of the plan."  # the median
    [warning] = run["warnings"]
    assert (warning["text"], warning["count"]) == ("the disk is nearly full", 3)
    assert "Make room on the disk" in warning["advice"]
    assert "the disk is nearly full" in page
    rest = data["rest"]["one"]
    assert ["samples of a.jsonl", "8,000"] in rest["data"]
    assert ["found", "noted: unused_field 2 (<script>alert(2)</script> 2)"] in rest["data"]
    [question] = data["answers"]["one"]["questions"]
    assert [one["step"] for one in question["answers"]] == [0, 9]
    assert data["experts"]["one"]["steps"] == [0, 1000]
    assert data["curves"]["one"]["loss"]["mean"][0] == 2.1


def test_nothing_is_fetched_and_no_text_of_others_becomes_a_script(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    make_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == 1 + len(SCRIPTS)  # the data, and ours
    assert "<script>alert" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["']?(?:http|//)|@import|url\(""", page)


ODD_BYTES = [
    b"\0" * 40,
    b"\xff\xfe",
    b"[" * 10**6,
    b"[]",
    b"7",
    b"",
    b'{"loss": 1.0}',
    b'{"step": 1.5}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"step": 1' + b"0" * 400 + b"}",
    b'{"step": 1, "loss": "low"}',
    b'{"step": 1, "loss": [1]}',
    b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    b'{"step": 1, "loss": 1' + b"0" * 5000 + b"}",
    b'{"step": 1, "l\\u001b[31m": "x"}',
]


@pytest.mark.parametrize("line", ODD_BYTES)
def test_odd_line_is_named_by_its_number(tmp_path: Path, line: bytes) -> None:
    folder = make_run(tmp_path / "one")
    path = folder / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 1, is not what a run writes") as e:
        make_report([folder], folder / "report.html")
    assert "\x1b" not in str(e.value)
    assert not (folder / "report.html").exists()


ODD_FIELDS = [
    ("answers.jsonl", {"prompt": None}),
    ("answers.jsonl", {"set_f1": "x"}),
    ("answers.jsonl", {"step": "0"}),
    ("answers.jsonl", {"calls": {"is_right": True, "by_tool": [1]}}),
    ("router_load.jsonl", {"load": [["x"]]}),
    ("router_load.jsonl", {"load": [[]]}),
    ("router_load.jsonl", {"kind": 1}),
    ("starts.jsonl", {"versions": None}),
    ("starts.jsonl", {"plan": []}),
    ("starts.jsonl", {"plan": {"memory_gib": "x"}}),
    ("starts.jsonl", {"git": "x"}),
    ("starts.jsonl", {"data": {"x": 1}}),
]


@pytest.mark.parametrize(("name", "fields"), ODD_FIELDS)
def test_odd_field_of_any_file_is_named(tmp_path: Path, name: str, fields: dict) -> None:
    folder = make_run(tmp_path / "one")
    change_line(folder, name, 0, **fields)
    with pytest.raises(
        ConfigError, match=rf"{name}, line 1, is not what .*\({next(iter(fields))} "
    ):
        make_report([folder], folder / "report.html")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in itertools.pairwise("abcdefghijklmnopqrstuvw")
)


@pytest.mark.parametrize("text", ["", "[]", "a", "train: 3", "[" * 5000, "\0", "a: [", BOMB,
                                  f"train:\n  {BOMB}".replace("\n", "\n  ")])  # fmt: skip
def test_odd_settings_are_named(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "one")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml .* the report does without"):
        make_report([folder], folder / "report.html")


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    values = (float("nan"), float("inf"), -float("inf"), 1e300, None, 0, -(2**900))
    for number, value in enumerate(values):
        change_line(folder, "metrics.jsonl", number, loss=value, tokens_seen_x=value)
    make_report([folder], folder / "report.html")
    means = read_page(folder / "report.html")["curves"]["one"]["loss"]["mean"]
    assert means[:7] == [None, None, None, 1e300, None, 0, pytest.approx(-(2**900))]
    assert None not in means[7:]


def test_full_disk_leaves_the_page_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "one")
    page = folder / "report.html"
    page.write_text("before")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_file.os, "fsync", refuse)
    names = {path.name for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"cannot be written .*\(No space left on device\); make"):
        make_report([folder], page)
    assert page.read_text() == "before"
    assert {path.name for path in folder.iterdir()} == names


def test_several_runs_stand_on_one_page(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", rate=3e-5)]
    folders.append(make_run(tmp_path / "other" / "two"))
    output = tmp_path / "all.html"
    assert cli.main(["report", *map(str, folders), "--output", str(output)]) == 0
    data = read_page(output)
    keys = [run["key"] for run in data["overview"]["runs"]]
    assert keys == ["one", "two", "other/two"]
    rates = [data["rest"][key]["settings"]["learning_rate"] for key in keys]
    assert rates == ["1e-05", "3e-05", "1e-05"]
    assert list(data["curves"]) == keys


def test_answers_are_taken_apart(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    told = "<think>\nwhy & how\n</think>\n<answer>\nso\n</answer>"
    rows = [answer(0, told, is_exact=True) | {"prompt": f"question {n}?"} for n in range(50)]
    write_lines(folder / "answers.jsonl", rows)
    sample = {"step": 1000, "mode": "fast", "prompt": "end?", "output": told}
    write_lines(folder / "samples.jsonl", [sample])
    make_report([folder], tmp_path / "page.html")
    answers = read_page(tmp_path / "page.html")["answers"]["one"]
    assert answers["num_questions"] == 50
    assert len(answers["questions"]) == 40
    [first] = answers["questions"][0]["answers"]
    assert (first["reasoning"], first["content"]) == ("why & how", "so")
    assert first["marks"] == ["exact"]
    assert answers["samples"][0]["content"] == "so"


def test_calls_are_counted_by_tool_and_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    rows = [
        answer(step, "a", is_exact=True)
        | {"calls": {"is_right": is_right, "by_tool": dict.fromkeys(names, is_right)}}
        for step, names, is_right in (
            *((0, ["f"], False), (0, ["f", "g"], False), (0, [], True)),
            *((step, ["f"], step > 5) for step in range(3, 12)),
        )
    ]
    write_lines(folder / "answers.jsonl", [*rows, answer(11, "a", is_exact=True)])
    make_report([folder], tmp_path / "page.html")
    answers = read_page(tmp_path / "page.html")["answers"]["one"]
    assert answers["tools"]["steps"] == [0, 7, 8, 9, 10, 11]
    assert answers["tools"]["rows"] == {
        "f": ["0 of 2", *["1 of 1"] * 5],
        "g": ["0 of 1", *["none"] * 5],
    }
    assert "calls wrong" in answers["questions"][0]["answers"][0]["marks"]


def test_losses_of_held_out_files_and_calls_have_charts_of_their_own() -> None:
    names = ["eval_loss/a.jsonl", "eval_loss/b.jsonl", "eval_perplexity/a.jsonl", "loss_text"]
    names += ["eval_call_accuracy", "eval_call_accuracy/f", "eval_calls", "eval_metric_mine"]
    charts = {chart["title"]: chart["series"] for chart in list_charts(names)}
    labels = {title: [one["label"] for one in series] for title, series in charts.items()}
    assert labels == {
        "Loss by span": ["text"],
        "Calls of held-out answers with tools": ["right"],
        "Held-out loss by file": ["a.jsonl", "b.jsonl"],
        "eval_metric_mine": ["eval_metric_mine"],
    }


def test_held_out_pairs_are_shown_with_their_first_and_last_margin(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    rows = [
        {"step": step, "prompt": f"q{n}", "chosen": "a", "rejected": "b"}
        | {"reward_chosen": step / 10, "reward_rejected": n / 10}
        for step in (2, 4, 6)
        for n in range(2)
    ]
    write_lines(folder / "pairs.jsonl", rows)
    make_report([folder], tmp_path / "page.html")
    pairs = read_page(tmp_path / "page.html")["answers"]["one"]["pairs"]
    assert pairs["steps"] == [2, 6]
    assert pairs["rows"] == [
        ["q0", "a", "b", "+0.200", "+0.600"],
        ["q1", "a", "b", "+0.100", "+0.500"],
    ]


def test_needles_found_stand_side_by_side(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    rows = [
        {"step": 0, "model": model, "length": length, "depth": 0.5, "is_exact": is_exact}
        for model, length, is_exact in [
            ("before training", 1024, True),
            ("before training", 1024, False),
            ("before training", 4096, False),
            ("step 9", 1024, True),
        ]
    ]
    write_lines(folder / "needles.jsonl", rows)
    make_report([folder], tmp_path / "page.html")
    needles = read_page(tmp_path / "page.html")["rest"]["one"]["needles"]
    assert needles["lengths"] == [1024, 4096]
    assert needles["rows"]["before training"] == ["1 of 2", "0 of 1"]
    assert needles["rows"]["step 9"] == ["1 of 1", "none"]


def test_a_run_that_has_only_begun_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    make_report([tmp_path], tmp_path / "page.html")
    curves = read_page(tmp_path / "page.html")["curves"][tmp_path.name]
    assert curves["loss"] == {"steps": [1], "mean": [2], "lines_each": 1}


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="so there is nothing to report"):
        read_run(tmp_path)


def test_a_run_whose_page_cannot_be_written_is_complete_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").mkdir()
    report_at_end(run)
    assert "(Is a directory)" in caplog.text
    assert render_command("report", run) in caplog.text

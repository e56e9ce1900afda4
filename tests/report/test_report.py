"""The page about a run: what it shows, and that a browser draws it in both colour schemes."""

import errno
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from hunyuan_train import cli, whole_file
from hunyuan_train.errors import ConfigError
from hunyuan_train.report.charts import (
    Curve,
    choose_marks,
    draw_chart,
    draw_heat_map,
    short,
    thin_out,
)
from hunyuan_train.report.closing import report_at_end
from hunyuan_train.report.commands import make_report
from hunyuan_train.report.record import read_run
from hunyuan_train.shipped import render_command

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1200)  # a phone and a desk
KINDS = {0: "profile", 1000: "load"}  # of router loads, by step
PLAN = {"memory_gib": 64.0, "tokens_per_second": 2000.0}
SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(step: int, output: str, *, is_exact: bool) -> dict:
    return {
        "step": step,
        "mode": "slow",
        "prompt": "<|startoftext|>Why <b>?<|extra_0|>",
        "reference": "<think>\nr\n</think>\n<answer>\nA\n</answer>",
        "output": output,
        "is_well_formed": is_exact,
        "is_leaking": not is_exact,
        "is_exact": is_exact,
        "set_f1": float(is_exact),
    }


def make_run(folder: Path, *, rate: float = 1e-5) -> Path:
    """A run folder with known numbers."""
    (folder / "log").mkdir(parents=True)
    steps = range(10, 1010, 10)
    metrics = [
        {
            "step": step,
            "loss": 2.0 + 1.0 / step,
            "loss_fast": 1.5,
            "loss_slow": 2.5,
            "learning_rate": rate,
            "grad_norm": None if step == 20 else 1.0,
            "tokens_per_second": 1000.0 + step,
            "memory_gib": 60.0 + step / 1000,
            "samples_seen_a.jsonl": 8 * step,
            "router_entropy": 0.9,
        }
        for step in steps
    ]
    write_lines(folder / "metrics.jsonl", metrics)
    load = [[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]
    write_lines(
        folder / "router_load.jsonl",
        [
            {"step": 0, "kind": "profile", "load": load},
            {"step": 1000, "kind": "load", "load": load},
        ],
    )
    write_lines(
        folder / "answers.jsonl",
        [answer(0, "<script>alert(1)</script>", is_exact=False), answer(9, "A", is_exact=True)],
    )
    start = {"step": 0, "time": "now", "num_processes": 8, "device": "CPU", "versions": {"t": "1"}}
    found = "noted: unused_field 2 (<script>alert(2)</script> 2)"
    start |= {"found": found, "data": {"samples": "0123456789abcdef0"}}
    write_lines(folder / "starts.jsonl", [{**start, "git": None, "plan": PLAN}])
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"learning_rate": rate}}))
    (folder / "log" / "rank0.txt").write_text(
        "2026-03-02 10:00:00,000 WARNING hunyuan_train.x: the disk is nearly full\n" * 3
        + "2026-03-02 10:00:00,000 INFO hunyuan_train.x: all is well\n"
        + "2026-03-02 10:00:00,000 WARNING py.warnings: deprecated\n"
    )
    return folder


class Balance(HTMLParser):
    """Notes elements that are opened and not closed, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "html", "body"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in ("html", "body"):
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)


def test_a_report_shows_numbers_against_the_plan_and_what_went_wrong(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    balance = Balance()
    balance.feed(page)
    assert (balance.open, balance.problems) == ([], [])
    assert "61.00 GiB of 64.00 planned (-5%)" in page
    assert "1,505 of 2,000 planned (-25%)" in page  # the median of 1,010 to 2,000 tokens a second
    assert "noted: unused_field 2 (&lt;script&gt;alert(2)&lt;/script&gt; 2)" in page
    assert "the disk is nearly full (3 times)" in page
    assert "all is well" not in page
    assert "deprecated" not in page
    assert "8,000" in page  # samples of a.jsonl
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.index("before training (slow") < page.index("step 9 (slow; exact)")
    assert "http" not in page  # nothing is fetched


def change_line(folder: Path, name: str, number: int, **fields: object) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | fields)
    (folder / name).write_text("\n".join(lines) + "\n")


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
    drawn = re.findall(r'points="([^"]*)"', (folder / "report.html").read_text())
    assert drawn
    assert not re.search("nan|inf", " ".join(drawn))


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


def test_several_runs_stand_side_by_side_and_what_differs_comes_first(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", rate=3e-5)]
    output = tmp_path / "both.html"
    assert cli.main(["report", *map(str, folders), "--output", str(output)]) == 0
    page = output.read_text()
    assert "one: training" in page
    assert "two: training" in page
    differing = page[page.index("Settings</h2>") : page.index("<details>")]
    assert "<td>1e-05</td><td>3e-05</td>" in differing


def test_answers_are_shown_taken_apart_and_many_are_folded(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    told = "<think>\nwhy & how\n</think>\n<answer>\nso\n</answer>"
    rows = [answer(0, told, is_exact=True) | {"prompt": f"question {n}?"} for n in range(9)]
    write_lines(folder / "answers.jsonl", rows)
    make_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '<pre class="dim">why &amp; how</pre><pre>so</pre>' in page
    shown, folded = page.split("<summary>3 more questions</summary>")
    assert "question 5?" in shown
    assert "question 6?" in folded


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
    page = (tmp_path / "page.html").read_text()
    assert "<th></th><th>1,024 tokens</th><th>4,096 tokens</th>" in page
    assert "<td>before training</td><td>1 of 2</td><td>0 of 1</td>" in page
    assert "<td>step 9</td><td>1 of 1</td><td>none</td>" in page


def test_a_run_that_has_only_begun_can_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    make_report([tmp_path], tmp_path / "page.html")
    assert "<circle" in (tmp_path / "page.html").read_text()


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


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(step), 2.0 * step) for step in range(1000)]
    thinned = thin_out(points)
    assert len(thinned) <= 300
    assert thinned[0] == (1.5, 3.0)
    assert thin_out(points[:7]) == points[:7]


def test_charts_and_maps_have_a_name_for_those_who_cannot_see_them() -> None:
    assert 'aria-label="loss"' in draw_chart("loss", [Curve("training", [(1, 2.0), (2, 1.0)], 0)])
    assert draw_chart("nothing", [Curve("training", [], 0)]) == ""
    drawn = draw_heat_map("load", [[0.5, 0.5], [1.0, 0.0]])
    assert drawn.count("<rect") == 4
    assert "expert 0: 2.00 equal shares" in drawn


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.07, 3.31, [0, 1, 2, 3, 4]),
        (2.0, 2.1, [2.0, 2.025, 2.05, 2.075, 2.1]),
        (-3.0, 1.0, [-3, -2, -1, 0, 1]),
        (5.0, 5.0, [4, 6]),
        (0.0, 0.0, [0, 0.25]),
    ],
)
def test_grids_lie_at_round_values_around_the_curves(
    low: float, high: float, marks: list[float]
) -> None:
    assert choose_marks(low, high) == pytest.approx(marks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1.23M"), (0.00012, "1.2e-4"), (12.345, "12.3"), (-4500, "-4.5k")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def in_browser(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    finished = subprocess.run(
        [*command, "--enable-logging=stderr", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=page.parent,
    )
    assert "CONSOLE" not in finished.stderr
    return finished


@pytest.fixture(params=[1, 2], ids=["one run", "two runs"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folders = [make_run(tmp_path / name) for name in ("one", "two")[: request.param]]
    make_report(folders, tmp_path / "page.html")
    return tmp_path / "page.html"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_draws_it_without_complaint_in_both_schemes(page: Path, width: int) -> None:
    brightness = {}
    for name, number in SCHEMES.items():
        picture = page.with_name(f"{name}.png")
        scheme = f"--blink-settings=preferredColorScheme={number}"
        in_browser(page, scheme, f"--window-size={width},3000", f"--screenshot={picture}")
        pixels = imread(picture)[:, :, :3]
        brightness[name] = float(np.median(pixels))
        # Curves and maps are there in their own colours: some pixels are far from grey.
        colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 0.25
        assert colourful.mean() > 0.002
    assert brightness["dark"] < 0.2 < 0.9 < brightness["light"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    frame = page.with_name("frame.html")  # Chromium's own window is no narrower than 500
    frame.write_text(
        f"<iframe src='page.html' width={WIDTHS[0]} height=800></iframe><script>"
        "onload = () => { const root = document.querySelector('iframe').contentDocument"
        ".documentElement; document.title = `${root.clientWidth} ${root.scrollWidth}` }</script>"
    )
    dumped = in_browser(frame, "--allow-file-access-from-files", "--dump-dom").stdout
    client, scroll = re.search(r"<title>(\d+) (\d+)</title>", dumped).groups()
    assert client == scroll
    assert int(client) <= WIDTHS[0]

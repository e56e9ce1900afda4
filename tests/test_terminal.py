"""What stands in texts and names is shown on a terminal and in a log, and never obeyed there."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from hunyuan_train.cli import build_parser, main
from hunyuan_train.errors import DataError
from hunyuan_train.launcher.rank.worker import report_failure
from hunyuan_train.plain_text import make_plain, make_plain_name
from hunyuan_train.terminal import PlainConsole, PlainFormatter, complain, say
from tests.conftest import REPOSITORY

ESCAPES = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x9d8;;http://x\x9c", "\r", "\b\b", "\x7f",
           "\0", "\u202e", "\u2066", "\u200f", "\u2028", "\ufeff", "\ud800", "\U000e0041", "\x85",
           "\x0c"]  # fmt: skip
SHOWN = re.compile(r"[\t\n\x20-\x7e\xa0-\U0010ffff]*")
INVISIBLE = re.compile(
    r"[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
HOSTILE = st.text(
    st.one_of(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), st.sampled_from("a[/;m")),
    max_size=12,
)
# Two lone surrogates in a row are the one thing that JSON cannot tell from a character.
WRITABLE = HOSTILE.filter(lambda text: not re.search("[\ud800-\udfff]{2}", text))
VALUES = st.recursive(
    WRITABLE, lambda inner: st.dictionaries(WRITABLE, inner, max_size=2), max_leaves=4
)


def is_plain(text: str) -> bool:
    return bool(SHOWN.fullmatch(text)) and not INVISIBLE.search(text)


@given(HOSTILE)
def test_plain_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    name = make_plain_name(text)
    assert is_plain(make_plain(text))
    assert is_plain(name)
    assert not re.search("[\t\n]", name)
    assert make_plain(name) == name


@given(st.text())
def test_text_that_is_plain_stays_as_it_is(text: str) -> None:
    assert (make_plain(text) == text) == is_plain(text)


@given(VALUES)
def test_a_line_of_json_stays_the_same_json(value: object) -> None:
    line = json.dumps(value, ensure_ascii=False)
    assert json.loads(make_plain(line)) == json.loads(line)


def test_a_name_has_an_end() -> None:
    assert len(make_plain_name("x" * 10**6)) < 400


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_way_to_the_screen_obeys(escape: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"a{escape}b"
    console = PlainConsole(file=io.StringIO(), width=60)
    table = Table()
    table.add_row(text, Text(text, style="bold"))
    for drawn in (text, Text(text), Panel(text, title=text), table):
        console.print(drawn)
    console.out(text)
    with console.status(text), Progress(console=console) as bar:
        bar.add_task(text)
    assert is_plain(console.file.getvalue())
    say(text)
    complain(text)
    report_failure(f"error: {text}")
    captured = capsys.readouterr()
    assert is_plain(captured.out)
    assert is_plain(captured.err)
    assert captured.out == f"{make_plain(text)}\n"


def test_colours_of_our_own_stay() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text("\x1b[2Ja", style="red"))
    assert console.file.getvalue() == "\x1b[31m\\u001b[2Ja\x1b[0m\n"


def test_markup_and_emoji_in_names_are_text() -> None:
    console = PlainConsole(file=io.StringIO(), width=60)
    console.print("[/red] [bold]x[/bold] :smile:")
    assert console.file.getvalue() == "[/red] [bold]x[/bold] :smile:\n"


def test_log_lines_show_what_stands_in_names() -> None:
    path = Path("a\nWARNING forged: \x1b[31m")
    record = logging.LogRecord("x", logging.INFO, "", 0, "read %s of %s", (path, "b\x9b"), None)
    assert PlainFormatter("%(message)s").format(record) == (
        "read a\\nWARNING forged: \\u001b[31m of b\\u009b"
    )


def test_wrong_arguments_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(["verify"]).parse_args(["verify", "x", "--y\x1b[2J"])
    assert "--y\\u001b[2J" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [("trian", "train"), ("data chek", "check"), ("serve x --engine vlm", "vllm")],
)
def test_the_word_that_was_meant_is_named(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words.split())
    assert capsys.readouterr().err.strip().endswith(f"; did you mean {meant}?")


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "  quantize  " in capsys.readouterr().err


def test_findings_and_failures_of_commands_show_hostile_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "\x1b]0;owned\x07.jsonl"
    message = {"role": "us\x9ber\u202e", "content": "\x1b[2J"}
    records = [{"mess\x1b[1mages": 1}, {"messages": [message]}, {"messages": "\x9b"}]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text(text + "\x1b[3J no JSON\n")
    for flags in ([], ["--json"]):
        assert main(["data", "check", str(file), *flags]) == 1
    main(["data", "show", str(file), "--row", "1"])
    assert main(["verify", str(tmp_path / "\x1b[2J")]) == 2
    assert main(["data", "check", str(tmp_path / "none\x1b[2J.jsonl")]) == 2
    captured = capsys.readouterr()
    assert is_plain(captured.out)
    assert is_plain(captured.err)


def test_an_error_of_ours_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> int:
        raise DataError("a\x1b[2J\udcff")

    monkeypatch.setattr("hunyuan_train.cli.run_command", refuse)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: a\\u001b[2J\\udcff\n"


def test_every_console_log_and_parser_is_a_plain_one() -> None:
    of_others = r"(?<![\w.])(?:Console|logging\.Formatter|argparse\.ArgumentParser)\("
    for path in (REPOSITORY / "hunyuan_train").rglob("*.py"):
        if path.name != "terminal.py":
            assert not re.findall(of_others, path.read_text()), path

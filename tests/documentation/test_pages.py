"""The documentation is what the code is, has no dead link, and says the same in two languages."""

import re
import shlex
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from documentation import write
from documentation.pages import (
    README,
    REPOSITORY,
    all_pages,
    anchors_of,
    bilingual_pages,
    headings_of,
    in_chinese,
    links_of,
    numbers_of,
    pictures_of,
    read_blocks,
)
from documentation.plans import TABLES, write_table
from documentation.reference import all_help
from hunyuan_train.config.planned_machines import HELP
from hunyuan_train.config.settings import COMMAND_FLAGS, FIELDS

SETTINGS = {f"--{name}" for name in (*FIELDS, *COMMAND_FLAGS)}
SETTINGS |= {f"--no_{name}" for name in FIELDS} | {"--help"}
TAKE_SETTINGS = ("train", "plan", "rehearse", "doctor", "verify-resume")
SCRIPT_VARIABLES = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", (REPOSITORY / "train.sh").read_text()))


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its usage otherwise")
def test_what_the_code_says_is_what_stands_there():
    assert write.main(["--check"]) == 0, "run `python -m documentation.write`"


def test_a_stale_figure_is_found():
    text = README.read_text()
    stale = re.sub(r"\| [\d.]+ GB", "| 0.1 GB", text, count=1)
    assert stale != text
    assert write.fill(stale, is_chinese=False) == text


def test_rows_of_small_cards_have_the_speeds_of_such_cards():
    for job in (job for jobs in TABLES.values() for job in jobs):
        is_small = any(size in f"{job.english} |" for size in ("24 GB |", "48 GB |", "as 24 GB"))
        assert is_small == any(f"--gpu {name}" in job.flags for name in ("rtx4090", "l40s")), job
    assert "H100 (48 GB: L40S, 24 GB: RTX 4090)" in write_table("adapters", is_chinese=False)


def test_every_table_of_the_plan_is_shown_in_both_languages():
    for pages in (bilingual_pages(), [in_chinese(page) for page in bilingual_pages()]):
        shown = [name for page in pages for _, _, name, _ in write.PLACE.findall(page.read_text())]
        assert set(TABLES) <= set(shown)


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_every_link_leads_somewhere(page):
    assert find_dead_links(page, page.read_text()) == []


def find_dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for _, target in links_of(text):
        path, _, anchor = unquote(target).partition("#")
        if path.startswith(("https://", "http://")):
            continue
        to = (page.parent / path).resolve() if path else page
        is_good = to.is_relative_to(REPOSITORY) and to.exists()
        if is_good and anchor:
            is_good = anchor in anchors_of(text if to == page else to.read_text())
        dead += [] if is_good else [target]
    return dead


def test_dead_links_are_found():
    text = "# A\n[a](#b) [b](no.md) [c](docs/faq.md#no) [d](#a) [e](docs/faq.md)"
    assert find_dead_links(README, text) == ["#b", "no.md", "docs/faq.md#no"]


def compare(english: str, chinese: str) -> list[str]:
    """What one page has and the other lacks."""
    found = []
    if [level for level, _ in headings_of(english)] != [level for level, _ in headings_of(chinese)]:
        found.append(f"sections: {headings_of(english)} {headings_of(chinese)}")
    blocks = [
        [(one.mark, without_comments(one.text)) for one in read_blocks(text)]
        for text in (english, chinese)
    ]
    if blocks[0] != blocks[1]:
        both = blocks[0] + blocks[1]
        differ = [one for one in both if blocks[0].count(one) != blocks[1].count(one)]
        found.append(f"commands: {differ}")
    if pictures_of(english) != pictures_of(chinese):
        found.append("pictures")
    tables = [len(re.findall(r"^\|", text, re.M)) for text in (english, chinese)]
    if tables[0] != tables[1]:
        found.append(f"lines of tables: {tables}")
    if differ := numbers_of(english) ^ numbers_of(chinese):
        found.append(f"figures: {sorted(differ)}")
    return found


def without_comments(text: str) -> str:
    return re.sub(r"\s*(?:^|(?<=\s))# .*", "", text, flags=re.M)


@pytest.mark.parametrize("page", bilingual_pages(), ids=name_of)
def test_both_languages_say_the_same(page):
    assert compare(page.read_text(), in_chinese(page).read_text()) == []


@pytest.mark.parametrize("page", bilingual_pages(), ids=name_of)
def test_each_page_leads_to_the_other_language(page):
    chinese = in_chinese(page)
    assert chinese.resolve() in [
        (page.parent / to).resolve() for _, to in links_of(page.read_text())
    ]
    back = [(chinese.parent / to).resolve() for _, to in links_of(chinese.read_text())]
    assert page.resolve() in back


@pytest.mark.parametrize("page", bilingual_pages(), ids=name_of)
def test_a_chinese_page_says_which_links_lead_to_english(page):
    chinese = in_chinese(page)
    assert find_unmarked_links(chinese, chinese.read_text()) == []


def find_unmarked_links(page: Path, text: str) -> list[str]:
    """Links to pages in English whose words do not say so."""
    in_both = {in_chinese(one) for one in bilingual_pages()}
    unmarked = []
    for words, target in links_of(text):
        to = (page.parent / unquote(target).partition("#")[0]).resolve()
        if to.suffix == ".md" and to not in in_both and "英文" not in words:
            unmarked += [] if words == "English" else [target]
    return unmarked


def test_unmarked_links_are_found():
    text = "[English](../faq.md) [a](../verl.md) [b 英文](../verl.md) [c](data.md) [d](#e)"
    assert find_unmarked_links(in_chinese(bilingual_pages()[1]), text) == ["../verl.md"]


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("## Two\n", "sections"),
        ("ls\n", "commands"),
        ("![x](a.png)", "pictures"),
        ("| 1 |\n", "lines of tables"),
        ("7.5", "figures"),
    ],
)
def test_what_one_language_lacks_is_found(lost, named):
    page = "# One\n## Two\n7.5\n```bash\nls\n```\n![x](a.png)\n| 1 |\n| 1 |\n"
    assert compare(page, page) == []
    [found] = compare(page, page.replace(lost, "", 1))
    assert found.startswith(named)


@cache
def flags_of(command: str) -> set[str]:
    if command == "train":
        return SETTINGS
    helps = all_help()
    own = set(re.findall(r"--[\w-]+", helps[command]))
    return own | (SETTINGS if command in TAKE_SETTINGS else set()) | {f"--{name}" for name in HELP}


def commands_of(text: str) -> list[list[str]]:
    """The words of each command on a page, also of those that are only indented."""
    shell = [block.text for block in read_blocks(text) if block.is_shell]
    shell += re.findall(r"^    (hunyuan-train .+)$", text, re.M)
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    ours = [line for line in lines if "hunyuan-train" in line or "train.sh" in line]
    return [words for line in ours if (words := shlex.split(line, comments=True))]


def find_wrong_words(text: str) -> list[str]:
    """Flags and variables that a command of ours does not know."""
    wrong = []
    for words in commands_of(text):
        if "hunyuan-train" not in words and "train.sh" not in words:
            continue
        place = words.index("hunyuan-train" if "hunyuan-train" in words else "train.sh")
        wrong += [
            one for one in words[:place] if "=" in one and one.split("=")[0] not in SCRIPT_VARIABLES
        ]
        rest = words[place + 1 :]
        command = "train" if words[place] == "train.sh" or not rest else rest[0]
        if command == "data":
            command = " ".join(rest[:2])
        flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
        if command.startswith("--"):
            known = {"--version", "--help"}
        elif command == "train" or command in all_help():
            known = flags_of(command)
        else:
            wrong.append(command)
            continue
        wrong += [flag for flag in flags if flag not in known]
    return wrong


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_every_command_has_flags_that_exist(page):
    assert find_wrong_words(page.read_text()) == []


def test_wrong_words_of_commands_are_found():
    text = (
        "```bash\nMODEL=x bash train.sh --lr 1\nhunyuan-train serve --fast\nhunyuan-train go\n```"
    )
    assert find_wrong_words(text) == ["MODEL=x", "--lr", "--fast", "go"]

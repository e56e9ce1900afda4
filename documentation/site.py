"""Builds the site: `python -m documentation.site OUT [--program ZENSICAL]`.

Pages keep their places beside each other, so that their links hold here as they do in the
repository. What a page links to and is no page, such as a data file, comes along as it is. A link
that leads nowhere ends the build.

The generator gives all pages of a site one language, so there are two builds: pages in Chinese come
from one whose menu and labels are Chinese. The switch between the languages then leads from
each page to its counterpart. Nothing is loaded from another host when a page is read.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from posixpath import relpath
from typing import Any
from urllib.parse import unquote

from documentation.pages import (
    CHINESE,
    CHINESE_README,
    REPOSITORY,
    all_pages,
    bilingual_pages,
    in_chinese,
    links_of,
)

CONFIG = Path(__file__).with_name("zensical.toml")
CHINESE_MENU, ENGLISH_MENU = "中文", "英文页面"
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
# A line break within a sentence in Chinese, which a browser would show as a blank.
IN_CHINESE, FULL_WIDTH = r"[\u4e00-\u9fff]", r"[\u3001-\u303f\uff00-\uffef]"
BREAK = re.compile(
    rf"(?<={IN_CHINESE})\n *(?={IN_CHINESE}|{FULL_WIDTH})"
    rf"|(?<={FULL_WIDTH})\n *(?!\d+\. )(?=[`\w\[*])"
)
SWITCH = re.compile(r'href="[^"]*"( hreflang="(en|zh)")')


def lay_out(folder: Path) -> None:
    """Copy every page, and every file that one links to."""
    wanted = set(all_pages())
    for page in all_pages():
        for _, target in links_of(page.read_text(encoding="utf-8")):
            path = unquote(target).partition("#")[0]
            if path and "://" not in path:
                wanted.add((page.parent / path).resolve())
    for path in wanted:
        if path.is_file():
            to = folder / path.relative_to(REPOSITORY)
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md" and is_chinese(path):
                to.write_text(join_lines(path.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copyfile(path, to)


def join_lines(text: str) -> str:
    """A page in Chinese without line breaks inside of sentences."""
    parts = FENCED.split(text)
    parts[::2] = [BREAK.sub("", part) for part in parts[::2]]
    return "".join(parts)


def is_chinese(page: Path) -> bool:
    """Whether a page is written in Chinese."""
    return page == CHINESE_README or page.is_relative_to(CHINESE)


def address_of(page: Path) -> str:
    """The folder of a page in the site: "." for the first page."""
    path = page.relative_to(REPOSITORY)
    is_index = path.name in ("README.md", "index.md")
    return str(path.parent if is_index else path.with_suffix(""))


def counterparts() -> dict[Path, dict[str, Path]]:
    """Where the switch leads from each page: to the page in the other language, or to the first."""
    found = {page: {"en": page, "zh": CHINESE_README} for page in all_pages()}
    for english in bilingual_pages():
        both = {"en": english, "zh": in_chinese(english)}
        found |= dict.fromkeys(both.values(), both)
    return found


def write_config(path: Path, *, chinese: bool) -> None:
    """Write the settings of one build; the Chinese one has the menu in Chinese first."""
    config: dict[str, Any] = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    if chinese:
        project = config["project"]
        *english, ours = project["nav"]
        project["nav"] = [*ours[CHINESE_MENU], {ENGLISH_MENU: english}]
        project["theme"]["language"] = "zh"
    lines = (f"{json.dumps(key)} = {to_toml(value)}\n" for key, value in config.items())
    path.write_text("".join(lines), encoding="utf-8")


def to_toml(value: object) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {to_toml(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


def join_languages(english: Path, chinese: Path) -> None:
    """Put the pages in Chinese into the English site, and lead each switch to the counterpart."""
    for page, others in counterparts().items():
        address = address_of(page)
        built = Path(address) / "index.html"
        text = ((chinese if is_chinese(page) else english) / built).read_text(encoding="utf-8")
        to = {name: relpath(address_of(other), address) for name, other in others.items()}
        text = SWITCH.sub(lambda link, to=to: f'href="{to[link[2]]}/"{link[1]}', text)
        (english / built).write_text(text, encoding="utf-8")


def build(out: Path, program: str) -> int:
    """Build the site into a new folder; the exit code is Zensical's."""
    with tempfile.TemporaryDirectory() as work:
        for language in ("en", "zh"):
            folder = Path(work) / language
            lay_out(folder / "pages")
            write_config(folder / CONFIG.name, chinese=language == "zh")
            command = [program, "build", "--clean", "--strict"]
            done = subprocess.run(command, cwd=folder, check=False)
            if done.returncode:
                return done.returncode
        join_languages(Path(work) / "en/site", Path(work) / "zh/site")
        shutil.copytree(Path(work) / "en/site", out)
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--program", default="zensical", help="pip install 'zensical==0.0.73'")
    options = parser.parse_args(arguments)
    return build(options.out, options.program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

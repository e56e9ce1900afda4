"""Writes what stands in the documentation by the code: `python -m documentation.write [--check]`.

Pages of reference are written whole. In other pages, what lies between two comments is:

    <!-- plan: NAME -->       a table of plans.py          <!-- /plan -->
    <!-- glossary: NAME -->   a table of reference.py      <!-- /glossary -->
"""

import re
import sys
from pathlib import Path

from documentation.pages import CHINESE, CHINESE_README, REFERENCE, REPOSITORY, all_pages
from documentation.plans import write_table
from documentation.reference import write_commands, write_glossary, write_settings

PLACE = re.compile(r"(<!-- (plan|glossary): ([\w-]+) -->\n).*?(<!-- /\2 -->)", re.S)


def written_pages() -> dict[Path, str]:
    """Every page that the code has a part in, as it should be."""
    pages = {
        REFERENCE / "settings.md": write_settings(),
        REFERENCE / "commands.md": write_commands(),
    }
    for page in set(all_pages()) - set(pages):
        text = page.read_text(encoding="utf-8")
        is_chinese = page == CHINESE_README or page.is_relative_to(CHINESE)
        if PLACE.search(text):
            pages[page] = fill(text, is_chinese=is_chinese)
    return pages


def fill(text: str, *, is_chinese: bool) -> str:
    """A page with its tables written anew."""

    def write(place: re.Match[str]) -> str:
        begin, kind, name, end = place.groups()
        if kind == "plan":
            return f"{begin}{write_table(name, is_chinese=is_chinese)}\n{end}"
        return f"{begin}{write_glossary(name)}\n{end}"

    return PLACE.sub(write, text)


def main(arguments: list[str]) -> int:
    stale = []
    for page, text in written_pages().items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(str(page.relative_to(REPOSITORY)))
            if "--check" not in arguments:
                page.write_text(text, encoding="utf-8")
    for name in stale:
        print(("stale: " if "--check" in arguments else "written: ") + name)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

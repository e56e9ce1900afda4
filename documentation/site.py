"""Builds the site: `python -m documentation.site OUT [--program ZENSICAL]`.

Pages keep their places beside each other, so that their links hold here as they do in the
repository. What a page links to and is no page, such as a data file, comes along as it is. A link
that leads nowhere ends the build.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

from documentation.pages import CHINESE, CHINESE_README, REPOSITORY, all_pages, links_of

CONFIG = Path(__file__).with_name("zensical.toml")


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
            shutil.copyfile(path, to)


def name_languages(site: Path) -> None:
    """Mark pages in Chinese as such: the generator gives every page one language."""
    pages = [page for page in all_pages() if page.is_relative_to(CHINESE)]
    for page in [CHINESE_README, *pages]:
        built = site / page.relative_to(REPOSITORY).with_suffix("")
        path = (built.parent if built.name == "index" else built) / "index.html"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('<html lang="en"', '<html lang="zh"', 1), encoding="utf-8")


def build(out: Path, program: str) -> int:
    """Build the site into a new folder; the exit code is Zensical's."""
    with tempfile.TemporaryDirectory() as work:
        lay_out(Path(work) / "pages")
        shutil.copyfile(CONFIG, Path(work) / CONFIG.name)
        done = subprocess.run([program, "build", "--clean", "--strict"], cwd=work, check=False)
        if done.returncode == 0:
            name_languages(Path(work) / "site")
            shutil.copytree(Path(work) / "site", out)
    return done.returncode


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--program", default="zensical", help="pip install 'zensical==0.0.73'")
    options = parser.parse_args(arguments)
    return build(options.out, options.program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

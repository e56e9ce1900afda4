"""The site is built by its generator, strictly: a link or an anchor that leads nowhere ends it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from documentation.pages import REPOSITORY, all_pages, in_chinese, task_pages
from documentation.site import CONFIG, lay_out
from tests.clients.environments import client_python

NAV = CONFIG.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", task_pages(), ids=lambda page: page.stem)
def test_each_page_is_in_the_menu_in_both_languages(page):
    for one in (page, in_chinese(page)):
        assert f'"{one.relative_to(REPOSITORY)}"' in NAV


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.stem)
def test_every_page_can_be_reached_from_the_menu(page):
    assert f'"{page.relative_to(REPOSITORY)}"' in NAV


def test_what_pages_link_to_comes_along(tmp_path):
    lay_out(tmp_path)
    for name in ("docs/pictures/watch.png", "data/tiny_train.jsonl", "docs/zh/faq.md"):
        assert (tmp_path / name).stat().st_size > 0


def build(out: Path) -> subprocess.CompletedProcess[str]:
    zensical = Path(client_python("site")).with_name("zensical")
    return subprocess.run(
        [sys.executable, "-m", "documentation.site", str(out), "--program", str(zensical)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_site_has_every_page_and_finds_words_of_both_languages(tmp_path):
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((tmp_path / "site" / "search.json").read_text(encoding="utf-8"))
    text = json.dumps(index, ensure_ascii=False)
    assert "stochastic rounding" in text
    assert "随机舍入" in text
    words = re.split(index["config"]["separator"], "长度与打包、Alpaca")
    chinese = (tmp_path / "site/docs/zh/faq/index.html").read_text(encoding="utf-8")
    assert '<html lang="zh"' in chinese
    assert {"打", "包", "Alpaca"} <= set(words), "Chinese is searched for by its characters"
    for name in ("docs/one-gpu", "docs/zh/one-gpu", "docs/reference/settings", "ARCHITECTURE"):
        assert (tmp_path / "site" / name / "index.html").exists()


@pytest.mark.slow
def test_a_dead_link_ends_the_build(tmp_path):
    zensical = Path(client_python("site")).with_name("zensical")
    lay_out(tmp_path / "pages")
    (tmp_path / CONFIG.name).write_text(NAV, encoding="utf-8")
    page = tmp_path / "pages/docs/faq.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[x](nowhere.md)\n", encoding="utf-8")
    command = [zensical, "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout + done.stderr

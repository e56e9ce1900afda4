"""The site is built by its generator, strictly: a link or an anchor that leads nowhere ends it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from documentation.pages import REPOSITORY, all_pages, bilingual_pages, in_chinese
from documentation.site import (
    CHINESE_MENU,
    CONFIG,
    address_of,
    counterparts,
    is_chinese,
    join_lines,
    lay_out,
    write_config,
)
from tests.clients.environments import client_python

NAV = CONFIG.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", bilingual_pages(), ids=lambda page: page.stem)
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


def test_the_chinese_build_has_every_page_and_its_own_menu_first(tmp_path):
    write_config(tmp_path / "one.toml", chinese=True)
    project = tomllib.loads((tmp_path / "one.toml").read_text(encoding="utf-8"))["project"]
    assert project["theme"]["language"] == "zh"
    assert CHINESE_MENU not in str(project["nav"])
    assert "README.zh-CN.md" in str(project["nav"][0])
    assert all(str(one.relative_to(REPOSITORY)) in str(project["nav"]) for one in all_pages())


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("一张。\n`plan` 二。\n三四\n  五六\n", "一张。`plan` 二。三四五六\n"),
        ("- 七。\n- 八。\n1. 九。\n2. 十\n| 一 |\n", None),
        ("十。\n\n```bash\n# 一。\nls\n```\n", None),
        ("中\nLoRA\n\n文\n", None),
    ],
)
def test_lines_of_a_chinese_sentence_are_joined_and_nothing_else(text, joined):
    assert join_lines(text) == (joined or text)


def test_the_switch_leads_to_the_counterpart():
    switches = counterparts()
    for english in bilingual_pages():
        both = {"en": english, "zh": in_chinese(english)}
        assert switches[english] == switches[in_chinese(english)] == both
    assert switches[REPOSITORY / "docs/verl.md"]["en"].name == "verl.md"


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
    site = tmp_path / "site"
    for page, others in counterparts().items():
        built = site / address_of(page)
        text = (built / "index.html").read_text(encoding="utf-8")
        assert ('<html lang="zh"' in text) == is_chinese(page)
        assert ("键入以开始搜索" in text) == is_chinese(page)
        loaded = r'<(?:link|script|img|iframe)\b[^>]*(?:src|href)="?(https?:[^" >]*)'
        assert re.findall(loaded, text) == [], "nothing is loaded from another host"
        for link, name in re.findall(r'href="([^"]*)" hreflang="(en|zh)"', text):
            assert (built / link).resolve() == (
                tmp_path / "site" / address_of(others[name])
            ).resolve()
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

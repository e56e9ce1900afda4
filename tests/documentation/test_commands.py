"""Every command of the documentation is run as it is written, or says what it needs."""

import pytest

from documentation.pages import DOCS, README, read_blocks, task_pages
from tests.documentation.test_pages import name_of
from tests.test_examples import copy_repository, run_block

LAPTOP = DOCS / "laptop.md"
RUN: list[str] = []  # blocks that several pages have are run once


def blocks_of(page, *marks):
    return [one.text for one in read_blocks(page.read_text()) if one.is_shell and one.mark in marks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("documentation") / "repository")


@pytest.mark.parametrize("page", task_pages(), ids=name_of)
def test_commands_that_need_nothing(page, folder):
    blocks = blocks_of(page, "")
    if not blocks:
        pytest.skip("every command of this page needs something")
    run_block("\n".join(blocks), folder)


@pytest.fixture(scope="module")
def trained(folder):
    """The path of a laptop, every command of it; its run is what other pages speak of."""
    for block in blocks_of(LAPTOP, "", "slow"):
        run_block(block, folder)
    return folder


@pytest.mark.slow
def test_the_path_of_a_laptop_leads_to_a_model(trained):
    assert list((trained / "runs/tiny/export").glob("*.safetensors"))
    assert (trained / "runs/tiny/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", [one for one in task_pages() if one != LAPTOP], ids=name_of)
def test_slow_commands(page, trained):
    blocks = [one for one in blocks_of(page, "slow") if one not in RUN]
    if not blocks:
        pytest.skip("no slow command that another page has not")
    for block in blocks:
        run_block(block, trained)
        RUN.append(block)


def test_readme_begins_with_a_command_that_is_run():
    assert blocks_of(README, "slow")[0] == "bash train.sh\n"

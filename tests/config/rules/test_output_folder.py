import pytest

from hunyuan_train.config.rules.listing import Needs
from hunyuan_train.errors import ConfigError
from tests.config.resolved import resolve_flags


def check(folder, *flags):
    resolve_flags(["--output_dir", str(folder), *flags], known=[Needs.DISK])


@pytest.fixture
def earlier_run(tmp_path):
    folder = tmp_path / "run"
    for step in ("step-000020", "step-000100"):
        (folder / "checkpoints" / step).mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_another_runs_folder_is_refused_with_the_three_remedies(earlier_run):
    with pytest.raises(ConfigError, match="reached step-000100") as caught:
        check(earlier_run)
    for remedy in (
        "--resume_from_checkpoint auto",
        "another --output_dir",
        "--overwrite_output_dir",
    ):
        assert remedy in str(caught.value)
    check(earlier_run, "--resume_from_checkpoint", "auto")
    check(earlier_run, "--overwrite_output_dir")


def test_an_output_folder_without_checkpoints_may_be_used_again(tmp_path):
    (tmp_path / "config.yaml").touch()
    check(tmp_path)


@pytest.mark.parametrize("below", ["x", "x/y/z"])
def test_an_output_folder_below_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    message = rf"output_dir is .*file/{below}, which lies below the file .*file; give a folder"
    with pytest.raises(ConfigError, match=message):
        check(tmp_path / "file" / below)


def test_an_output_folder_where_nothing_may_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=f"nothing may be written in {tmp_path}"):
        check(tmp_path / "new/run")


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="which is a file; give a folder"):
        check(tmp_path / "run")

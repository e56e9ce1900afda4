import os
import site
import subprocess
from pathlib import Path

import pytest

from hunyuan_train import shipped
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.report import closing
from hunyuan_train.shipped import render_command


def test_other_processes_look_for_this_package_first_and_once() -> None:
    folder = str(shipped.CODE_FOLDER)
    assert shipped.python_path(None) == folder
    assert shipped.python_path("/mine") == os.pathsep.join([folder, "/mine"])
    assert shipped.python_path(os.pathsep.join(["/mine", folder])) == f"{folder}:/mine"


def test_nothing_comes_before_the_standard_library_where_python_looks_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shipped, "CODE_FOLDER", Path(site.getsitepackages()[0]).resolve())
    assert shipped.python_path(None) == ""
    assert shipped.python_path("/mine") == "/mine"


def paste(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Paste a command into a shell that knows nothing of this environment."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("has_script", [True, False])
def test_a_command_that_is_shown_works_in_any_folder(
    has_script: bool, tmp_path: Path, monkeypatch
) -> None:
    script = Path(shipped.sys.executable).with_name("hunyuan-train")
    if has_script and not script.is_relative_to(shipped.CODE_FOLDER):
        pytest.skip("train.sh has not prepared this checkout")
    monkeypatch.setattr(shipped, "COMMAND", "hunyuan-train" if has_script else "no-such-script")
    assert (str(script) in render_command()) is has_script
    start, elsewhere = tmp_path / "it's here", tmp_path / "elsewhere"
    for folder in (start, elsewhere):
        folder.mkdir()
    (start / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(start)
    assert paste(render_command("--version"), elsewhere).stdout.startswith("hunyuan-train ")
    said = paste(render_command("verify", "my run"), elsewhere)  # relative to where it was shown
    assert said.returncode == 2, said.stderr
    assert "my run" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("name", ["talk to it", "next", "export it"])
def test_the_commands_at_the_end_of_a_run_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(closing, "find_best", lambda checkpoints: Path("best one"))
    monkeypatch.setattr(closing, "list_checkpoints", lambda folder: [Path("last")])
    config = with_settings(
        RunConfig(),
        model_name_or_path="base model",
        output_dir="a run",
        use_lora=True,
        save_best=True,
    )
    command = closing.closing_rows(config)[name]
    said = paste(f"{command} --help", Path("/"))
    assert said.returncode == 0, said.stderr
    assert str(tmp_path / "a run") in str(command)

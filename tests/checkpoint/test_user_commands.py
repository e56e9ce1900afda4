"""The user's commands after checkpoints and before a resume."""

import logging
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hunyuan_train.checkpoint import user_commands
from hunyuan_train.checkpoint.user_commands import (
    CheckpointCommands,
    fetch_checkpoints,
    run_user_command,
)
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(str(step))
    return checkpoint


@pytest.mark.parametrize(
    "command",
    [
        "ls -d",
        'ls -d "$1"',
        'ls -d "${1%/}"',
        'ls -d "$@"',
        'for one in "$1"; do ls -d "$one"; done',
        "cat /dev/null",
    ],
)
def test_the_folder_is_named_or_comes_last(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "it's a $HOME; false"
    folder.mkdir()
    fault = run_user_command(f"test $# = 1 || exit 9; {command}", folder)
    assert (fault is None) == (command != "cat /dev/null")  # which cannot read a folder


def test_a_relative_folder_becomes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fault = run_user_command("echo $1; exit 4", Path("runs/mine"))
    assert fault == f"exit code 4 | {tmp_path}/runs/mine"


def test_the_command_is_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_user_command('test -z "$RANK$LOCAL_RANK" && test -d "$1"', tmp_path) is None


def test_a_failure_shows_its_last_lines(tmp_path: Path) -> None:
    fault = run_user_command("seq 1000; printf '\\377'; echo no luck >&2; exit 3; # $1", tmp_path)
    assert fault == "exit code 3 | 997 | 998 | 999 | 1000 | \ufffdno luck"


@pytest.mark.parametrize(
    "left", ["sleep 40 &", "(sleep 40) &", "(while sleep 1; do echo x; done) &"]
)
def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path, left: str) -> None:
    began = time.monotonic()
    assert run_user_command(f"{left} : $1", tmp_path) is None
    fault = run_user_command(f"{left} echo no luck; exit 3; : $1", tmp_path)
    assert time.monotonic() - began < 10
    assert fault is not None
    # What is left may have written something by now.
    assert fault.removesuffix(" | x") == "exit code 3 | no luck"
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def list_processes(mark: str) -> list[str]:
    return [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])
            if mark in (one.info["cmdline"] or [])]  # fmt: skip


def test_what_hangs_is_killed_with_its_children_and_counts_as_failed(tmp_path: Path) -> None:
    began, mark = time.monotonic(), "86399.25"  # seconds that nothing else sleeps
    line = f"echo at it; sleep {mark} | cat; : $1"
    fault = run_user_command(line, tmp_path, most_seconds=0.5)
    assert time.monotonic() - began < 10
    assert fault == "it was killed, because it had not ended in its time | at it"
    assert list_processes(mark) == []


def test_a_checkpoint_whose_copy_hangs_is_freed_and_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commands = CheckpointCommands("sleep 1000; : $1", (0.1, 0.1), most_hours=1 / 3600)
    folder = make_checkpoint(tmp_path, 1)
    commands.start(folder)
    said = commands.describe()
    assert said is not None
    assert f"has been at {folder} for 0 minutes. After 0.000277778 hours it counts" in said
    wait_until(lambda: not commands.in_use())
    assert commands.describe() is None
    assert commands.fault == "it was killed, because it had not ended in its time"
    assert "Again in" not in caplog.text


def test_every_checkpoint_has_its_turn_and_is_in_use_until_then(tmp_path: Path) -> None:
    gate, copies = tmp_path / "gate", tmp_path / "copies"
    copies.mkdir()
    wait = f"while [ ! -e {gate} ]; do sleep 0.02; done"
    commands = CheckpointCommands(f'{wait}; cp -r "$1" {copies}')
    folders = [make_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    began = time.monotonic()
    for folder in folders:
        commands.start(folder)
    assert time.monotonic() - began < 1, "training does not wait"
    assert commands.in_use() == folders
    gate.touch()
    wait_until(lambda: not commands.in_use())
    assert sorted(one.name for one in copies.iterdir()) == [one.name for one in folders]
    assert commands.fault is None


def test_a_failure_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tries = tmp_path / "tries"
    line = f"echo x >>{tries}; test $(wc -l <{tries}) = 3 || {{ echo no route; exit 5; }} # $1"
    commands = CheckpointCommands(line, retry_after_seconds=(0.01,) * 4)
    commands.start(make_checkpoint(tmp_path, 1))
    wait_until(lambda: not commands.in_use())
    assert commands.fault is None
    assert caplog.text.count("exit code 5 | no route. Again in 0.01 s") == 2
    assert "after_checkpoint is done for step-000001" in caplog.text


def test_a_failure_to_the_end_is_known_at_the_end(tmp_path: Path) -> None:
    commands = CheckpointCommands("false", retry_after_seconds=(0.01, 0.01))
    commands.start(make_checkpoint(tmp_path, 1))
    wait_until(lambda: not commands.in_use())
    assert commands.fault == "exit code 1"


def test_a_newer_checkpoint_ends_the_tries_for_an_older_one(tmp_path: Path) -> None:
    commands = CheckpointCommands("grep -q 2 $1/manifest.json", retry_after_seconds=(1000.0,))
    commands.start(make_checkpoint(tmp_path, 1))
    time.sleep(0.2)
    commands.start(make_checkpoint(tmp_path, 2))
    wait_until(lambda: not commands.in_use())
    assert commands.fault is None


def config_of(folder: Path, **settings: object) -> RunConfig:
    return with_settings(RunConfig(), output_dir=str(folder), **settings)


def test_nothing_is_fetched_where_nothing_is_resumed(tmp_path: Path) -> None:
    fetch_checkpoints(config_of(tmp_path, before_resume="false"))
    fetch_checkpoints(config_of(tmp_path, resume_from_checkpoint="auto"))


def test_what_cannot_be_fetched_is_no_reason_to_start_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_commands, "FETCH_AGAIN_AFTER_SECONDS", (0.01,))
    config = config_of(
        tmp_path, before_resume=f"echo x >>{tmp_path}/tries; false", resume_from_checkpoint="auto"
    )
    with pytest.raises(ConfigError, match=r"before_resume is .* failed for .*: exit code 1"):
        fetch_checkpoints(config)
    assert (tmp_path / "tries").read_text() == "x\nx\n"


@pytest.mark.parametrize("how", ["rsync over ssh", "tar over ssh"])
def test_a_copy_on_another_machine_outlives_this_one(
    tmp_path: Path, loopback_ssh: list[str], how: str
) -> None:
    there, run = tmp_path / "there", tmp_path / "run"
    there.mkdir()
    *ssh, host = loopback_ssh
    shell, folder = shlex.join(ssh), shlex.quote(str(there))
    if how == "rsync over ssh":
        if shutil.which("rsync") is None:
            pytest.skip("rsync is missing: apt-get install rsync")
        away = f'rsync -a -e {shlex.quote(shell)} "$1" {host}:{folder}/'
        back = f'rsync -a -e {shlex.quote(shell)} {host}:{folder}/ "$1/checkpoints/"'
    else:
        away = f'tar -C "$1/.." -c "${{1##*/}}" | {shell} {host} tar -C {folder} -x'
        back = f'mkdir -p "$1/checkpoints"; {shell} {host} tar -C {folder} -c . | '
        back += 'tar -C "$1/checkpoints" -x'
    commands = CheckpointCommands(away)
    for step in (1, 2):
        commands.start(make_checkpoint(run, step))
    wait_until(lambda: not commands.in_use())
    assert commands.fault is None
    shutil.rmtree(run)
    fetch_checkpoints(config_of(run, before_resume=back, resume_from_checkpoint="auto"))
    for step in (1, 2):
        copied = run / "checkpoints" / f"step-{step:06d}" / "manifest.json"
        assert copied.read_text() == str(step)

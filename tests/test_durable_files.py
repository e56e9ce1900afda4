"""What a power loss, a kill or a planted link cannot spoil."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.publish import hash_file
from hunyuan_train.config.load import dump_config
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.json_lines import JsonLines
from hunyuan_train.launcher.start.prepare import lock_output_folder
from hunyuan_train.whole_file import make_folders, open_lock


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced, renamed and dropped from memory, in its order."""
    seen: list[tuple[str, str]] = []
    fsync, replace, advise = os.fsync, os.replace, os.posix_fadvise

    def note_sync(descriptor: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(old: str, new: Path) -> None:
        seen.append(("rename", str(new)))
        replace(old, new)

    def note_advice(descriptor: int, start: int, stop: int, advice: int) -> None:
        assert (start, stop, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        seen.append(("drop", os.readlink(f"/proc/self/fd/{descriptor}")))
        advise(descriptor, start, stop, advice)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "posix_fadvise", note_advice)
    return seen


def write_settings(path: Path) -> None:
    dump_config(RunConfig(), path)


def amend_metrics(path: Path) -> None:
    lines = JsonLines(path)
    lines.append({"step": 1})
    lines.amend({"step": 1, "loss": 2.0})


WRITERS = {"config.yaml": write_settings, "metrics.jsonl": amend_metrics}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_disk_before_it_takes_the_place_of_another(
    name: str, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    WRITERS[name](tmp_path / name)
    (first, written), *rest = calls
    assert first == "sync"
    assert written.startswith(f"{tmp_path}/.{name}.")
    assert rest == [("rename", str(tmp_path / name)), ("sync", str(tmp_path))]


def test_lines_are_on_disk_before_a_checkpoint_of_their_step(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.sync()  # nothing is there yet
    lines.append({"step": 1})
    lines.sync()
    assert calls == [("sync", str(tmp_path / "metrics.jsonl"))]


def test_the_names_of_new_folders_are_on_disk(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    make_folders(tmp_path / "run" / "checkpoints")
    assert sorted(calls) == [("sync", str(tmp_path)), ("sync", str(tmp_path / "run"))]
    make_folders(tmp_path / "run" / "checkpoints")
    assert len(calls) == 2


@pytest.mark.parametrize("refuses", ["", "open", "read"])
def test_a_checksum_is_read_back_from_the_disk(
    refuses: str,
    tmp_path: Path,
    calls: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past the page cache, or, where the file system cannot, once the cache has forgotten it."""
    opened, read = os.open, os.preadv
    past_cache: list[int] = []

    def open_or_refuse(path: str, flags: int, *others: int, **options: int | None) -> int:
        is_past = bool(flags & os.O_DIRECT)
        if is_past and refuses == "open":
            raise OSError(errno.EINVAL, "no such reads here")
        descriptor = opened(path, flags & ~os.O_DIRECT, *others, **options)
        past_cache.extend([descriptor] * is_past)
        return descriptor

    def read_or_refuse(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if descriptor in past_cache:
            calls.append(("read past the cache", str(position)))
            if refuses == "read":
                raise OSError(errno.EINVAL, "no such reads here")
        return read(descriptor, buffers, position)

    monkeypatch.setattr(os, "open", open_or_refuse)
    monkeypatch.setattr(os, "preadv", read_or_refuse)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    assert hash_file(file) == hashlib.sha256(b"x" * 5000).hexdigest()
    tried = [] if refuses == "open" else [("read past the cache", "0")]
    last = ("drop", str(file)) if refuses else ("read past the cache", "0")
    assert calls == [("sync", str(file)), *tried, last]


@pytest.mark.parametrize("name", WRITERS)
def test_planted_links_are_replaced_and_not_followed(name: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text('{"step": 1}\n')
    run.mkdir()
    for planted in (f"{name}.incomplete", Path(name).with_suffix(".amended").name):
        (run / planted).symlink_to(victim)
    if name == "config.yaml":
        (run / name).symlink_to(victim)
    WRITERS[name](run / name)
    assert victim.read_text() == '{"step": 1}\n'
    assert not (run / name).is_symlink()
    assert stat.S_IMODE((run / name).stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangle(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("new"))


def pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [link, dangle, pipe, Path.mkdir])
def test_a_lock_is_a_file_of_its_own(plant: Callable[[Path, Path], None], tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", tmp_path / ".run.lock"
    victim.write_text("precious")
    Path.mkdir(lock) if plant is Path.mkdir else plant(lock, victim)
    with pytest.raises(OSError, match=r"lock"):
        open_lock(lock)
    config = with_settings(RunConfig(), output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="nothing can be written"), lock_output_folder(config):
        pass
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_a_lock_leaves_what_stands_in_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("old")
    open_lock(lock).close()
    assert lock.read_text() == "old"

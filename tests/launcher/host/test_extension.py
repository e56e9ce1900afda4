import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from hunyuan_train.config.load import load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host import extension
from hunyuan_train.launcher.host.extension import (
    CPU_ADAM,
    SHARED_MEMORY,
    extensions_folder,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.rank.heartbeat import FOLDER_VARIABLE
from hunyuan_train.launcher.rank.worker import prepare_extensions
from tests.conftest import REPOSITORY


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler by one that takes 0.2 s; the list fills with what it compiled."""
    names = []

    def compile_slowly(wanted, build_folder, environment):
        time.sleep(0.2)
        names.append(wanted.name)
        (build_folder / f"{wanted.name}.so").touch()
        (build_folder / "compiled_for").write_text(extension.describe_build(environment))

    monkeypatch.setattr(extension, "_compile", compile_slowly)
    return names


def prepare(folder, console=None, environment=os.environ):
    console = console or Console(record=True, quiet=True)
    prepare_extension(SHARED_MEMORY, folder=folder, environment=environment, console=console)


@pytest.mark.parametrize(
    ("optimizer", "num_gpus", "expected"),
    [
        ("adamw", 0, [SHARED_MEMORY]),
        ("offload", 0, [SHARED_MEMORY, CPU_ADAM]),
        ("adamw", 8, []),
        ("offload", 8, [CPU_ADAM]),
        ("auto", 0, [SHARED_MEMORY]),  # as the doctor asks, before it is decided
    ],
)
def test_only_what_a_run_loads_is_compiled(optimizer, num_gpus, expected):
    config = load_config(["--optimizer", optimizer])
    assert needed_extensions(config, num_gpus=num_gpus) == expected


def test_the_folder_belongs_to_the_environment():
    ours = extensions_folder({})
    assert ours.parent == Path(sys.prefix, "torch_extensions")
    assert extensions_folder({"TORCH_EXTENSIONS_DIR": str(ours)}) == ours
    assert extensions_folder({"TORCH_EXTENSIONS_DIR": str(ours.parent)}) == ours


def test_links_to_one_environment_do_not_share_their_builds(tmp_path, monkeypatch):
    """Two checkouts whose .venv is one folder: each gives ninja paths of its own."""
    (tmp_path / "environment").mkdir()
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tmp_path / "environment")
        monkeypatch.setattr(sys, "prefix", str(tmp_path / name))
        folders.append(extensions_folder({}).resolve())
    assert folders[0].parent == folders[1].parent
    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    "changed",
    [{"CXX": "clang++"}, {"CXXFLAGS": "-O0"}, {"TORCH_CUDA_ARCH_LIST": "9.0"}, {"prefix": "/new"}],
    ids=str,
)
def test_it_is_compiled_here_and_not_in_the_ranks_where_its_command_changes(
    tmp_path, compiled, monkeypatch, changed
):
    prepare(tmp_path)
    monkeypatch.setattr(extension, "_check_tools", lambda environment: None)
    if "prefix" in changed:
        monkeypatch.setattr(sys, "prefix", changed["prefix"])
    prepare(tmp_path, environment={**os.environ, **changed})
    assert len(compiled) == 2


def test_environments_that_share_a_folder_do_not_share_their_builds(monkeypatch):
    ours = extensions_folder({"TORCH_EXTENSIONS_DIR": "/x"})
    assert ours.parent == Path("/x")
    assert extensions_folder({"TORCH_EXTENSIONS_DIR": str(ours)}) == ours
    monkeypatch.setattr(sys, "prefix", "/other")
    theirs = extensions_folder({"TORCH_EXTENSIONS_DIR": "/x"})
    assert theirs.parent == Path("/x")
    assert theirs != ours


def test_an_extension_is_compiled_once(tmp_path, compiled):
    prepare(tmp_path)
    prepare(tmp_path)
    assert compiled == ["deepspeed_shm_comm"]


def test_it_is_compiled_again_for_other_versions(tmp_path, compiled):
    prepare(tmp_path)
    (tmp_path / "deepspeed_shm_comm/compiled_for").write_text("torch 1.0, deepspeed 0.1\n")
    prepare(tmp_path)
    assert len(compiled) == 2


def test_two_launches_at_once_compile_once(tmp_path, compiled):
    launches = [threading.Thread(target=prepare, args=(tmp_path,)) for _ in range(2)]
    for launch in launches:
        launch.start()
    for launch in launches:
        launch.join()
    assert compiled == ["deepspeed_shm_comm"]


# Holds torch's own lock, says so and waits for the end of its stdin.
HOLDS_LOCK = """
import importlib.util, sys
from pathlib import Path
import os
file = Path(importlib.util.find_spec("torch").origin).parent / "utils" / "file_baton.py"
spec = importlib.util.spec_from_file_location("file_baton", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
baton = module.FileBaton(sys.argv[1])
assert baton.try_acquire()
print("held", flush=True)
sys.stdin.read()
baton.release()
"""


@pytest.fixture
def holder(tmp_path, compiled):
    """A process that holds the lock of an extension, taken long ago."""
    prepare(tmp_path)
    lock = tmp_path / "deepspeed_shm_comm/lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_LOCK, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    os.utime(lock, (0, 0))
    yield process, lock
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_lock_of_a_killed_compilation_is_removed_and_said(tmp_path, holder, capsys):
    process, lock = holder
    (lock.parent / extension.MARK).touch()
    os.utime(lock)
    process.kill()
    process.wait()
    prepare(tmp_path, Console(width=200))
    assert not lock.exists()
    assert "left behind by a compilation that was killed" in capsys.readouterr().out


def test_a_lock_whose_holder_cannot_be_seen_is_waited_for(tmp_path, compiled, monkeypatch, capsys):
    """As that of a rank on another host, which shares the environment."""
    monkeypatch.setattr(extension, "UNSEEN_SECONDS", 2.0)
    prepare(tmp_path)
    held = (tmp_path / "deepspeed_shm_comm" / extension.USERS).open("w")
    fcntl.flock(held, fcntl.LOCK_SH)
    lock = tmp_path / "deepspeed_shm_comm/lock"
    lock.touch()
    threading.Timer(0.5, lock.unlink).start()
    began = time.monotonic()
    prepare(tmp_path)
    assert 0.4 < time.monotonic() - began < 1.9
    lock.touch()
    monkeypatch.setattr(extension, "SOON_SECONDS", 0.0)
    prepare(tmp_path, Console(width=400, soft_wrap=True))
    said = capsys.readouterr().out
    assert f"its lock goes 2 s after it was made, or at once by `rm {lock}`" in said
    assert "left behind" in said
    assert not lock.exists()


def test_the_lock_of_a_killed_rank_goes_at_once_where_no_rank_lives(
    tmp_path, compiled, capsys, monkeypatch
):
    prepare(tmp_path)
    lock = tmp_path / "deepspeed_shm_comm/lock"
    holds = (
        "import os, sys\n"
        "from hunyuan_train.launcher.host.extension import hold_extensions\n"
        "hold_extensions(os.environ)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    name = extensions_folder({"TORCH_EXTENSIONS_DIR": "/x"}).name
    (tmp_path / name).symlink_to(tmp_path)
    rank = subprocess.Popen(
        [sys.executable, "-c", holds],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / name)},
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert rank.stdout.readline() == b"held\n"
    lock.touch()
    launch = threading.Thread(target=prepare, args=(tmp_path, Console(width=200)))
    launch.start()
    launch.join(1)
    assert launch.is_alive(), "a rank lives that may hold it"
    rank.kill()
    rank.communicate()
    launch.join(5)
    assert not launch.is_alive()
    assert not lock.exists()
    assert "left behind" in capsys.readouterr().out


def test_a_living_compilation_keeps_its_lock_however_long_it_takes(tmp_path, holder, capsys):
    process, lock = holder
    launch = threading.Thread(target=prepare, args=(tmp_path, Console(width=200)))
    launch.start()
    launch.join(1.5)
    assert launch.is_alive()
    assert lock.exists()
    process.stdin.close()  # it ends well, and removes its lock
    launch.join(10)
    assert not launch.is_alive()
    said = capsys.readouterr().out
    assert f"waiting for process {process.pid}" in said
    assert "left behind" not in said


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ([], r"g\+\+ is needed .*: apt-get install g\+\+"),
        (["g++"], "ninja is needed .*: pip install"),
    ],
)
def test_a_missing_tool_is_said_with_the_remedy(tmp_path, programs, message):
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in programs:
        (tools / program).touch(mode=0o755)
    with pytest.raises(ConfigError, match=message):
        prepare(tmp_path / "extensions", environment={"PATH": str(tools)})


def test_a_failed_compilation_shows_its_last_lines_and_leaves_no_lock(tmp_path, monkeypatch):
    code = "import sys; open({folder!r} + '/lock', 'w'); sys.exit('shm.cpp:3: error: no luck')"
    folder = str(tmp_path / "deepspeed_shm_comm")
    monkeypatch.setattr(extension, "COMPILE", code.replace("{folder!r}", repr(folder)))
    with pytest.raises(
        ConfigError, match=r"could not be compiled; [^\0]*shm.cpp:3: error: no luck"
    ):
        prepare(tmp_path)
    assert not (tmp_path / "deepspeed_shm_comm/lock").exists()


def test_a_folder_that_cannot_be_written_is_said_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set TORCH_EXTENSIONS_DIR to a folder of yours"):
        prepare(tmp_path / "file")


def test_it_compiles_where_it_looks_for_what_is_compiled(monkeypatch, tmp_path):
    compiled_in = []
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(
        extension,
        "_compile",
        lambda _, build_folder, environment: compiled_in.append(
            (build_folder.parent, environment["TORCH_EXTENSIONS_DIR"])
        ),
    )
    assert extension.main(["deepspeed_shm_comm"]) == 0
    folder = extensions_folder({})
    assert folder.is_relative_to(tmp_path)
    assert compiled_in == [(folder, str(folder))]


def test_a_rank_of_another_launcher_makes_its_own_way(tmp_path, compiled, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    lock = extensions_folder(os.environ) / "deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))  # of a process that was killed
    config = load_config([])
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    prepare_extensions(config, num_gpus=0)
    assert (compiled, lock.exists()) == ([], True), "our launcher has done it for its ranks"
    monkeypatch.delenv(FOLDER_VARIABLE)
    prepare_extensions(config, num_gpus=0)
    assert (compiled, lock.exists()) == (["deepspeed_shm_comm"], False)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(lock.parent.parent)


@pytest.mark.slow
def test_a_torchrun_of_the_users_trains_in_spite_of_a_lock_left_behind(tmp_path):
    built = extensions_folder(os.environ)
    prepare(built)
    shutil.copytree(built / "deepspeed_shm_comm", tmp_path / built.name / "deepspeed_shm_comm")
    locks = [folder / "deepspeed_shm_comm/lock" for folder in (tmp_path / built.name, tmp_path)]
    for lock in locks:  # the second one where torch looks if nothing else is said
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
        os.utime(lock, (0, 0))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(REPOSITORY / "train.py"), "--recipe", "tiny", "--max_steps", "1"),
            *("--export", "false", "--save_strategy", "no", "--output_dir", str(tmp_path / "run")),
        ],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"removed {locks[0]}, left behind" in done.stderr
    assert [lock.exists() for lock in locks] == [False, True]

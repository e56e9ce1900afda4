import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.launcher.network import environment_of


@pytest.fixture
def own_folder(network, tmp_path):
    """A folder that is empty on the second host only."""
    folder = tmp_path / "own"
    folder.mkdir()
    network.run(1, "mount", "-t", "tmpfs", "none", str(folder))
    yield folder
    network.run(1, "umount", str(folder))


def train(network, tmp_path, data, *flags):
    nodes = f"{network.address(0)}:1,{network.address(1)}:1"
    flags = ("--recipe", "tiny", "--output_dir", str(tmp_path / "run"), "--dry_run", *flags)
    return subprocess.run(
        network.command(
            0,
            [sys.executable, str(REPOSITORY / "train.py"), "--train_data_file", str(data), *flags],
        ),
        env=environment_of(network, NODE_IP_LIST=nodes),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_a_host_lacks_is_copied_to_it_before_the_start(network, tmp_path, own_folder):
    if shutil.which("rsync") is None:
        pytest.skip("rsync is missing: apt-get install rsync")
    data = own_folder / "it's my data.jsonl"
    shutil.copy(REPOSITORY / "data/tiny_train.jsonl", data)
    refused = train(network, tmp_path, data)
    assert refused.returncode == 2
    assert f"{data} is missing" in refused.stderr
    done = train(network, tmp_path, data, "--sync")
    assert done.returncode == 0, done.stderr
    there = network.run(1, "cat", str(data)).stdout
    assert there == data.read_text()
    assert (REPOSITORY / "train.py").exists()


def test_code_is_mirrored_and_what_else_lies_beside_it_stays(network, tmp_path):
    if shutil.which("rsync") is None:
        pytest.skip("rsync is missing: apt-get install rsync")
    folders = [str(REPOSITORY / name) for name in ("ds_configs", "hostfiles")]
    for folder in folders:
        network.run(1, "mount", "-t", "tmpfs", "none", folder)
        network.run(1, "touch", f"{folder}/of this host only")
    try:
        done = train(network, tmp_path, REPOSITORY / "data/tiny_train.jsonl", "--sync")
        assert done.returncode == 0, done.stderr
        ours = [sorted(os.listdir(folder)) for folder in folders]
        there = [network.run(1, "ls", folder).stdout.splitlines() for folder in folders]
    finally:
        for folder in folders:
            network.run(1, "umount", folder)
    assert there[0] == ours[0]
    assert sorted(there[1]) == sorted([*ours[1], "of this host only"])


def test_a_host_without_rsync_is_named(network, tmp_path, own_folder):
    if shutil.which("rsync") is None:
        pytest.skip("rsync is missing: apt-get install rsync")
    empty = tmp_path / "empty"
    empty.touch()
    network.run(1, "mount", "--bind", str(empty), os.path.realpath(shutil.which("rsync")))
    try:
        data = own_folder / "data.jsonl"
        shutil.copy(REPOSITORY / "data/tiny_train.jsonl", data)
        refused = train(network, tmp_path, data, "--sync")
    finally:
        network.run(1, "umount", os.path.realpath(shutil.which("rsync")))
    assert refused.returncode == 2
    assert f"could not be copied to host {network.address(1)}" in refused.stderr

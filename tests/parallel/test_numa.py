"""A rank keeps to the cores next to its GPU, and to those that somebody has chosen for it."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hunyuan_train.parallel import numa
from hunyuan_train.parallel.numa import bind_to_numa_node, choose_cores, parse_cores

GPU = "0000:65:00.0"
ALL = set(range(8))


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A machine of two nodes, and a third of memory alone; its GPU is at the second."""
    for node, cores in enumerate(["0-1,4-5", "2-3,6-7", ""]):
        folder = tmp_path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cores}\n")
    device = tmp_path / "bus/pci/devices" / GPU
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "chosen"),
    [
        (ALL, {2, 3, 6, 7}),
        ({0, 1, 2}, {2}),
        ({0, 1}, {0, 1}),  # bound by somebody, if to the farther node
        ({2, 3}, {2, 3}),
    ],
)
def test_cores_are_those_that_are_allowed_and_next_to_the_gpu(
    system: Path, allowed: set[int], chosen: set[int]
) -> None:
    assert choose_cores(allowed, GPU, system) == chosen


def test_where_the_firmware_does_not_say_nothing_changes(system: Path) -> None:
    (system / "bus/pci/devices" / GPU / "numa_node").write_text("-1\n")
    assert choose_cores(ALL, GPU, system) == ALL
    assert choose_cores(ALL, "0000:99:00.0", system) == ALL
    assert choose_cores(ALL, GPU, system / "none") == ALL


def test_cores_are_read_as_the_kernel_lists_them() -> None:
    assert parse_cores("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cores("") == set()


def bind_here(system: Path) -> None:
    """In a process of its own: what it and a thread of it are bound to."""
    gpu = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x65, pci_device_id=0)
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda _: gpu
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    bind_to_numa_node(0, system=system)
    bound = [os.sched_getaffinity(one) for one in (0, thread.native_id)]
    stop.set()
    assert bound == [{0}, {0}], bound


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.slow
def test_all_threads_are_bound(system: Path, repository: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert cores[:2] == [0, 1]
    (system / "devices/system/node/node0/cpulist").write_text("1-99\n")
    (system / "devices/system/node/node1/cpulist").write_text("0\n")
    code = (
        "import sys; from pathlib import Path; from tests.parallel.test_numa import bind_here\n"
        "bind_here(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(system)]
    subprocess.run(command, cwd=repository, check=True, timeout=300)


def test_without_a_gpu_nothing_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numa, "bind_thread", lambda *_: pytest.fail("bound"))
    bind_to_numa_node(0)

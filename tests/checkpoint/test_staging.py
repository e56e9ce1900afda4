"""States pass through two bounded buffers, and come out as they were, however late copies end."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.background import detach
from hunyuan_train.checkpoint.staging import Staging
from hunyuan_train.checkpoint.state import RankContent
from hunyuan_train.model.safetensors_files import read_range, write_range
from hunyuan_train.model.safetensors_header import read_header

BUFFER_BYTES = 64
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.uint8]


class Gpu:
    """Copies as a GPU does: some time between their beginning and the end of the wait for them."""

    def __init__(self, *, is_late: bool) -> None:
        self.is_late = is_late
        self.noted: list[str] = []
        self.addresses: set[int] = set()
        self.num_begun = 0

    def begin(self, buffer: Tensor, part: Tensor) -> Callable[[], None]:
        number, self.num_begun = self.num_begun, self.num_begun + 1
        self.noted.append(f"begin {number}")
        self.addresses.add(buffer.data_ptr())
        assert buffer.nbytes <= BUFFER_BYTES
        if not self.is_late:
            buffer.copy_(part)

        def wait() -> None:
            self.noted.append(f"wait {number}")
            if self.is_late:
                buffer.copy_(part)

        return wait


@pytest.fixture(params=[False, True], ids=["early", "late"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return Gpu(is_late=request.param)


def staging_of(gpu: Gpu) -> Staging:
    return Staging(buffer_bytes=BUFFER_BYTES, begin_copy=gpu.begin)


def random_states(dtype: torch.dtype, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    raw = torch.randint(0, 256, (length * dtype.itemsize,), generator=generator)
    return raw.to(torch.uint8).view(dtype)  # any bits, NaN among them


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_bytes", [0, 4, 64, 68, 128, 644])
def test_a_copy_has_the_same_bits(gpu: Gpu, dtype: torch.dtype, num_bytes: int) -> None:
    values = random_states(dtype, num_bytes // dtype.itemsize)
    staging = staging_of(gpu)
    assert same_bytes(staging.copy(values), values)
    assert same_bytes(staging.copy(values), values)  # by the same buffers
    assert len(gpu.addresses) <= 2
    assert sum(buffer.nbytes for buffer in staging.buffers) <= 2 * BUFFER_BYTES


def test_a_buffer_is_filled_while_the_other_is_emptied(gpu: Gpu) -> None:
    values = random_states(torch.float32, 40)
    for _ in staging_of(gpu).parts(values):
        gpu.noted.append("use")
    assert gpu.noted == [
        *("begin 0", "begin 1", "wait 0", "use"),
        *("begin 2", "wait 1", "use", "wait 2", "use"),
    ]


def test_a_copy_is_apart_from_what_lives_on() -> None:
    values = random_states(torch.float32, 40)
    for staging in (Staging(), staging_of(Gpu(is_late=False))):
        before, copied = values.clone(), staging.copy(values)
        values.add_(1)
        assert same_bytes(copied, before)


def test_without_a_gpu_nothing_is_copied_on_the_way() -> None:
    values = random_states(torch.float32, 40)
    ((start, part),) = Staging().parts(values)
    assert (start, part.data_ptr()) == (0, values.data_ptr())


@pytest.mark.parametrize("budget", [0, 200, 10**9])
def test_a_file_is_the_same_by_way_of_buffers_whatever_the_memory_for_copies(
    gpu: Gpu, tmp_path: Path, budget: int
) -> None:
    states = {f"master:{dtype}": random_states(dtype, 45) for dtype in DTYPES}
    content = RankContent(kinds=["master"], states=states, copies={}, ranges={}, step_count=1)
    path = tmp_path / "rank-00000.safetensors"
    content.create(path)
    locations, detached = read_header(path), threading.Event()
    written = 0
    for name, start, part in written_parts(content, budget, detached, gpu):
        if written < 45 * len(DTYPES) and not detached.is_set():
            assert part.nbytes <= BUFFER_BYTES  # nothing larger waits for the disk
        write_range(locations[name], start, part)
        written += len(part)
    assert detached.is_set()
    assert written == 45 * len(DTYPES)
    for name, values in states.items():
        assert same_bytes(read_range(locations[name], 0, 45), values)


def written_parts(
    content: RankContent, budget: int, detached: threading.Event, gpu: Gpu
) -> Iterator[tuple[str, int, Tensor]]:
    return detach(content, budget, detached, staging_of(gpu))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpus_states_come_out_as_they_were_beside_its_other_work(dtype: torch.dtype) -> None:
    staging = Staging(buffer_bytes=2**20)
    values = random_states(dtype, 5_000_001).cuda()
    stream, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        busy = busy @ busy
    with torch.cuda.stream(stream):
        copied = staging.copy(values)
    assert all(buffer.is_pinned() for buffer in staging.buffers)
    assert same_bytes(copied, values.cpu())

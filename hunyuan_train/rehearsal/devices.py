"""Stand-ins for CUDA: one GPU for this process, on which tensors have shapes and no data.

Called once, in a process of its own, before DeepSpeed and Transformers are imported; the guard
(guard.py) is loaded by then. Nothing here is undone.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives
import torch.utils.checkpoint
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from hunyuan_train.rehearsal.watch import Watch

CAPABILITY = (9, 0)  # of Hopper


class Properties:
    """What torch says of an H100."""

    name = "NVIDIA H100 80GB HBM3 (pretended)"
    major, minor = CAPABILITY
    multi_processor_count = 132
    warp_size = 32
    max_threads_per_multi_processor = 2048
    regs_per_multiprocessor = 65536
    shared_memory_per_block_optin = 232448
    L2_cache_size = 50 * 2**20
    gcnArchName = ""  # noqa: N815  torch's name

    def __init__(self, total_memory: int) -> None:
        self.total_memory = total_memory


class Stream:
    """An order of kernels; only its number matters: the allocator keeps blocks by stream."""

    watch: Watch
    made = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.number = Stream.made
        Stream.made += 1
        self.device, self.device_index = torch.device("cuda", 0), 0
        self.stream_id = self.cuda_stream = 0

    def wait_stream(self, _: "Stream") -> None:
        """Let the GPU wait for another stream; the CPU goes on."""

    def wait_event(self, _: "Event") -> None:
        """Let the GPU wait for an event; the CPU goes on."""

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Mark a place in the stream."""
        return event or Event()

    def synchronize(self) -> None:
        """Let the CPU wait."""
        self.watch.note_wait("Stream.synchronize")

    def query(self) -> bool:
        """Whether all is done."""
        return True

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """A mark in a stream."""

    watch: Watch

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Set it."""

    def wait(self, *_: Any) -> None:
        """Let the GPU wait for it."""

    def synchronize(self) -> None:
        """Let the CPU wait for it."""
        self.watch.note_wait("Event.synchronize")

    def query(self) -> bool:
        """Whether it is past."""
        return True

    def elapsed_time(self, _: "Event") -> float:
        """Milliseconds to another one."""
        return 1.0


class Device:
    """`torch.cuda.device`, of which there is one."""

    def __init__(self, _: object = None) -> None:
        self.idx = 0

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def pretend_devices(watch: Watch, *, num_gpus: int, total_memory: int) -> None:
    """Let this process take itself for one with GPUs.

    Args:
        watch: is told of waits and asked for bytes.
        num_gpus: of this machine; the process uses the first.
        total_memory: of each, in bytes.
    """
    Stream.watch = Event.watch = watch
    properties, first = Properties(total_memory), Stream()
    cuda: Any = torch.cuda
    torch.version.cuda = "13.0"
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: num_gpus,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "synchronize": lambda _=None: watch.note_wait("torch.cuda.synchronize"),
        "get_device_properties": lambda _=None: properties,
        "get_device_capability": lambda _=None: CAPABILITY,
        "get_device_name": lambda _=None: properties.name,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda _=None: (total_memory - watch.device.live, total_memory),
        "current_stream": lambda _=None: first,
        "default_stream": lambda _=None: first,
        "stream": make_stream_context(watch),
        "empty_cache": lambda: None,
        "memory_allocated": lambda _=None: watch.device.live,
        "max_memory_allocated": lambda _=None: highest(watch),
        "memory_reserved": lambda _=None: watch.device.live,
        "max_memory_reserved": lambda _=None: highest(watch),
        "memory_cached": lambda _=None: watch.device.live,
        "max_memory_cached": lambda _=None: highest(watch),
        "reset_peak_memory_stats": lambda _=None: None,
        "memory_stats": lambda _=None: defaultdict(int),
        "get_rng_state": lambda _=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_, **__: None,
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Event,
        "device": Device,
    }
    for name, value in answers.items():
        setattr(cuda, name, value)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_: None
    cuda.nccl.version = lambda: (2, 27, 5)
    torch._C._cuda_isCurrentStreamCapturing = lambda: False
    repair_fakes(watch)
    watch.kernel_library = have_own_kernels()


def highest(watch: Watch) -> int:
    """The most bytes held since counting began."""
    return max((peak.num_bytes for peak in watch.device.peaks.values()), default=watch.device.live)


def make_stream_context(watch: Watch) -> Any:
    """`torch.cuda.stream`, which says on whose behalf memory is taken."""

    @contextmanager
    def stream(chosen: Stream | None) -> Iterator[None]:
        before = watch.stream
        watch.stream = before if chosen is None else chosen.number
        try:
            yield
        finally:
            watch.stream = before

    return stream


# Kernels that a build without CUDA lacks, and computes by several operators instead: by name, the
# argument that their result looks like.
OWN_KERNELS = {"silu_backward": 1, "mish_backward": 1}


def have_own_kernels() -> torch.library.Library:
    """Let operators be one kernel that are one on GPUs; as long as what this gives is kept."""
    kernels = torch.library.Library("aten", "IMPL")
    for name, index in OWN_KERNELS.items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA"):
            continue  # of torch's CUDA build
        kernels.impl(name, lambda *given, index=index: torch.empty_like(given[index]), "CUDA")
    return kernels


def repair_fakes(watch: Watch) -> None:
    """What torch does with real tensors, and not with fake ones."""
    data = torch.Tensor.data

    def set_data(tensor: Any, value: Tensor) -> None:
        data.__set__(tensor, value)  # type: ignore[attr-defined]
        if isinstance(value, FakeTensor):
            tensor.fake_device = value.fake_device  # which otherwise stays the old one

    def read_list(tensor: Tensor) -> list[Any]:
        """One wait for all values of a list."""
        if tensor.device.type == "cuda":
            watch.note_wait("tolist")
        watch.note_stand_in("values that the CPU reads: 1, or false")
        value = 1.0 if tensor.dtype.is_floating_point else 1
        if tensor.dim() > 1:
            return [read_list(one) for one in tensor]
        return [value] * tensor.numel() if tensor.dim() else value  # type: ignore[return-value]

    def swap(one: Tensor, other: Tensor) -> None:
        one.data = other.data  # as Module.to does with real parameters

    fake: Any = FakeTensor
    fake.data = property(lambda tensor: data.__get__(tensor), set_data)  # type: ignore[attr-defined]
    fake.tolist = read_list
    # torch.tensor(..., device="cuda") begins as a tensor of the CPU, which is then copied.
    FakeTensorMode.avoid_device_init = property(lambda _: True)  # type: ignore[assignment]
    # torch 2.11 makes a real tensor first, where it takes itself for one with a GPU.
    module: Any = fake_tensor
    module.init_gpu_context = lambda _: None
    plain: Any = torch.Tensor
    plain.pin_memory = lambda tensor, *_, **__: watch.pin(tensor)
    plain.is_pinned = lambda *_, **__: False
    plain.record_stream = lambda *_: watch.note_stand_in(
        "record_stream: blocks that another stream still reads are free at once here"
    )
    torch.utils.swap_tensors = swap
    torch.utils.checkpoint.get_device_states = lambda *_: ([], [])
    torch.utils.checkpoint.set_device_states = lambda *_, **__: None


def pretend_ranks(world_size: int, ranks_per_node: int) -> None:
    """Let this process take itself for rank 0 of many, which are not there."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(ranks_per_node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())

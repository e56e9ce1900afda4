"""Lets ranks on a CPU run the kernels of GPUs, by Triton's interpreter; imported before DeepSpeed.

Kernels are those that are shipped. What stands in is what they ask of CUDA: that there is a GPU,
and, for the split plan, a stream whose copies are late: they happen when somebody waits for them.
TRITON_PACKAGES is where triton and liger-kernel are installed, if not here.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

sys.path.append(os.environ["TRITON_PACKAGES"])  # last: all else is this environment's
from triton.backends import backends

for backend in backends.values():
    backend.driver.is_active = staticmethod(lambda: True)  # or DeepSpeed has no kernels

from deepspeed.module_inject import auto_ep_layer  # noqa: E402
from deepspeed.ops.triton_ops import autoep_fused_token_ops  # noqa: E402

from hunyuan_train.model import fused  # noqa: E402
from tests.model.fused_in_triton import mend_interpreter  # noqa: E402


class Stream(TorchFunctionMode):
    """Keeps what is copied in it for later."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Callable[[], object]] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is not Tensor.copy_:
            return function(*arguments, **(options or {}))
        self.late.append(lambda: function(*arguments, **(options or {})))
        return arguments[0]

    def wait_event(self, _: object) -> None:
        """There is one order of work on a CPU."""


class Event:
    """A mark in a stream."""

    stream: Stream | None = None

    def record(self, stream: Stream | None) -> None:
        """Set it."""
        self.stream = stream

    def synchronize(self) -> None:
        """Wait for it: now late copies are made."""
        while self.stream and self.stream.late:
            self.stream.late.pop(0)()


class Gpu:
    """DeepSpeed's accelerator for a CPU, with streams."""

    Event = Event

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)

    def Stream(self, **_: object) -> Stream:  # noqa: N802  torch's name
        """A new one."""
        return Stream()

    def current_device(self) -> int:
        """There is one."""
        return 0

    def current_stream(self, _: object) -> None:
        """Of no interest: it is the order of the program."""

    def pin_memory(self, tensor: Tensor) -> Tensor:
        """All is host memory."""
        return tensor

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Do in a stream what is done inside."""
        with stream:
            yield


class OnGpu(Tensor):
    """A tensor of the CPU that says that it is of a GPU; results of it are plain ones."""

    device = property(lambda _: torch.device("cuda", 0))  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl


def pretend_gpu() -> None:
    """Replace what kernels and the split plan ask of CUDA."""
    start_plan = auto_ep_layer._start_async_split_plan_from_expert_counts
    accelerator = Gpu(auto_ep_layer.get_accelerator())
    replaced: dict[Any, dict[str, Any]] = {
        auto_ep_layer: {
            "get_accelerator": lambda: accelerator,
            "_start_async_split_plan_from_expert_counts": lambda num_tokens_per_expert, **others: (
                start_plan(num_tokens_per_expert.as_subclass(OnGpu), **others)
            ),
        },
        Tensor: {"record_stream": lambda *_: None},
        torch.cuda: {"device": lambda _: contextlib.nullcontext()},
        autoep_fused_token_ops: {"assert_supported": lambda *_, **__: None},
        fused: {"describe_lack": lambda **_: ""},
    }
    for owner, members in replaced.items():
        for name, value in members.items():
            setattr(owner, name, value)


mend_interpreter()
pretend_gpu()

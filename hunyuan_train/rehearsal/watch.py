"""Sees every operator on fake tensors: bytes, waits for the GPU, collectives, kernels, dtypes.

The outermost mode: what it lets through goes on to torch's FakeTensorMode, which knows shapes and
refuses operators on tensors of different devices. Where a value decides how a program goes on,
there is none, and `answers.py` makes one up; each answer is counted.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan_train.rehearsal.answers import WAITING, answer, is_mask
from hunyuan_train.rehearsal.ledger import Ledger
from hunyuan_train.rehearsal.lines import Place, find_place
from hunyuan_train.rehearsal.work import Tally

aten = torch.ops.aten

# Operators that make no kernel: they look at the same memory otherwise, or ask for memory.
VIEWS = frozenset(
    {
        "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze",
        "squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind",
        "permute", "narrow", "reshape", "lift_fresh", "is_pinned", "chunk", "unfold",
        "_reshape_alias", "device", "empty", "empty_like", "new_empty", "empty_strided",
        "set_", "new_empty_strided", "record_stream", "resize_", "_pin_memory",
        "pin_memory", "view_as",
    }
)  # fmt: skip
PRODUCTS = frozenset(["mm", "addmm", "bmm", "baddbmm", "_grouped_mm"])
SMALL_PRODUCT = 10**9  # operations, below which float32 costs nothing worth a word
# Files that say by themselves what is allocated in them, the innermost first.
PURPOSES = (
    ("hunyuan_train/model/label_losses.py", "logits and loss"),
    ("hunyuan_train/optim/lean.py", "update"),
    ("torch/optim/", "update"),
    ("deepspeed/runtime/zero/partition", "gathered weights"),
    ("deepspeed/runtime/zero/parameter_offload.py", "gathered weights"),
    ("deepspeed/runtime/comm/coalesced_collectives.py", "gradients in flight"),
    ("deepspeed/runtime/zero/stage", "gradients in flight"),
)
RECOMPUTING = "torch/utils/checkpoint.py"  # in a backward pass: a layer runs again
BY_PHASE = {
    "forward": "activations",
    "backward": "dispatch buffers",
    "optimizer": "update",
}


class Watch(TorchDispatchMode):
    """What a rank's GPU would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "between"  # the parts that have a name
        self.stream = 0
        self.device = Ledger("cuda")
        self.host = Ledger("cpu")
        self.waits: Counter[tuple[str, str, str]] = Counter()  # phase, kind, line
        self.kernels: Counter[tuple[str, str]] = Counter()  # phase, operator
        self.calls: Counter[tuple[str, str, str]] = Counter()  # phase, collective, group
        self.sent: Counter[tuple[str, str, str]] = Counter()  # the same, bytes
        self.stood_in: Counter[str] = Counter()
        self.float32_products: Counter[str] = Counter()  # line, operations
        self.tally = Tally()
        self.is_16_bit = True
        self.group_names: dict[str, str] = {}
        self.kernel_library: Any = None  # of operators that are one kernel on GPUs alone
        self.pinned: dict[int, weakref.ref[Any]] = {}  # storages that are page-locked
        self.parameter_bytes: set[int] = set()  # of whole large parameters, and so their gradients

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what happens inside for a phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def forget_counts(self) -> None:
        """Count the next step alone; memory and stand-ins are counted from the start."""
        for counter in (self.waits, self.kernels, self.calls, self.sent):
            counter.clear()
        self.tally.clear()
        self.device.peaks.clear()
        self.host.peaks.clear()

    def note_wait(self, kind: str, place: Place | None = None) -> None:
        """The CPU waits until the GPU has done all that it was told."""
        line = (place or find_place()).line
        self.waits[self.phase, kind, self.name_line(line)] += 1

    def note_stand_in(self, what: str) -> None:
        """A kernel, value or collective is made up."""
        self.stood_in[what] += 1

    def note_kernel(self, what: str, *touched: Tensor, num_bytes: int = 0) -> None:
        """A kernel is stood in for.

        Args:
            what: its name.
            touched: tensors that it reads or writes, each once.
            num_bytes: that it reads or writes besides.
        """
        self.note_stand_in(what)
        self.kernels[self.phase, what] += 1
        self.tally.count(self.phase, sys._getframe(1), "", touched, None, num_bytes=num_bytes)

    def name_line(self, line: str) -> str:
        """A line, and in a backward pass what autograd computes there."""
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        return f"{line} ({node.name()})" if node is not None else line

    def find_purpose(self, num_bytes: int) -> tuple[str, str]:
        """What a new storage is for, and the line that asked for it."""
        place = find_place()
        return self.purpose_at(place.files, num_bytes), self.name_line(place.line)

    def purpose_at(self, files: tuple[str, ...], num_bytes: int) -> str:
        """What is allocated in some files, the innermost first."""
        if self.phase == "start":
            return self.phase
        for purpose in filter(None, map(purpose_of_file, files)):
            is_gradient = self.phase == "backward" and num_bytes in self.parameter_bytes
            is_loss = purpose == "logits and loss"
            return "gradients in flight" if is_gradient and is_loss else purpose
        if self.phase == "backward":
            if num_bytes in self.parameter_bytes:
                return "gradients in flight"
            if RECOMPUTING in files:
                return "recomputed layer"
        return BY_PHASE.get(self.phase, self.phase)

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Look at an operator, let it run on shapes, and count what it makes."""
        given_options = options or {}
        name = operator._schema.name.partition("::")[2]
        options = self.take_pinned(given_options)
        self.look_for_waits(operator, name, arguments, options)
        is_pinned = options is not given_options
        if name == "index_put" and self.is_gradient_of_index():
            # Of real tensors autograd changes the zeros that it has made; of fake ones, a copy.
            operator, name = aten.index_put_.default, "index_put_"
        result = answer(operator, name, arguments, options, self.note_stand_in)
        if result is NotImplemented:
            if operator.namespace == "c10d":
                self.count_collective(name, arguments)
            result = run_on_shapes(operator, arguments, options)
            if is_pinned:
                self.pin(result)
            if operator.namespace != "c10d" and name not in VIEWS:
                self.count_kernel(operator, name, arguments, result)
        self.see(result)
        return result

    def is_gradient_of_index(self) -> bool:
        """Whether autograd gives a gradient to what rows were taken from."""
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        return node is not None and node.name() == "IndexBackward0"

    def take_pinned(self, options: dict[str, Any]) -> dict[str, Any]:
        """Ask for page-locked memory as for any other: a fake tensor has none to lock."""
        if options.get("pin_memory"):
            return {**options, "pin_memory": False}
        return options

    def pin(self, tensor: Tensor) -> Tensor:
        """Remember a tensor's memory as page-locked."""
        self.note_stand_in("page-locked memory, taken as plain host memory")
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.pinned[key] = weakref.ref(storage, lambda _: self.pinned.pop(key, None))
        return tensor

    def see(self, result: Any) -> None:
        """Count the storages of a result."""
        if isinstance(result, Tensor):
            self.device.see(result, self.phase, self.stream, self.find_purpose)
            self.host.see(result, self.phase, 0, self.find_purpose)
        elif isinstance(result, (list, tuple)):
            for one in result:
                self.see(one)

    def look_for_waits(
        self, operator: Any, name: str, arguments: Any, options: dict[str, Any]
    ) -> None:
        """Note where the CPU has to wait: a value is read, a shape depends on one, a copy."""
        if name in WAITING and is_on_device(arguments[0]):
            self.note_wait(name)
        elif operator is aten._local_scalar_dense.default and is_on_device(arguments[0]):
            self.note_wait("item")
        elif name in ("index", "index_put", "index_put_"):
            if any(is_mask(one) for one in arguments[1]):
                self.note_wait("boolean index")
        elif name in ("_to_copy", "copy_"):
            self.look_at_copy(name, arguments, options)

    def look_at_copy(self, name: str, arguments: Any, options: dict[str, Any]) -> None:
        """A copy between host and device waits, unless it is asked not to and memory is pinned."""
        source = arguments[0] if name == "_to_copy" else arguments[1]
        target = options.get("device") if name == "_to_copy" else arguments[0].device
        if target is None or not isinstance(source, Tensor) or not source.numel():
            return
        if source.device.type == torch.device(target).type:
            return
        given = arguments[2] if name == "copy_" and len(arguments) > 2 else False
        # A copy to the host that makes its own target makes it page-locked.
        host = arguments[0] if name == "copy_" and source.is_cuda else source
        is_pinned = host.is_cuda or host.untyped_storage()._cdata in self.pinned
        if is_pinned and (given or options.get("non_blocking")):
            return
        num_bytes = source.numel() * source.element_size()
        to_host = source.device.type == "cuda"
        way = "copy to the host" if to_host else "copy to the GPU, from memory that is not pinned"
        self.note_wait(f"{way}, {describe_size(num_bytes)}")

    def count_collective(self, name: str, arguments: Any) -> None:
        """Count a collective and its bytes: the mean of what goes in and what comes out."""
        groups = [
            dist.ProcessGroup.unbox(one)
            for one in arguments
            if isinstance(one, torch.ScriptObject) and "ProcessGroup" in str(one._type())
        ]
        group = self.name_group(groups[0]) if groups else "?"
        num_bytes = sum(map(bytes_of, arguments[:2])) // 2
        key = (self.phase, name.rstrip("_"), group)
        self.calls[key] += 1
        self.sent[key] += num_bytes
        self.note_stand_in("collectives: nothing is sent, and nothing arrives")

    def name_group(self, group: Any) -> str:
        """A process group by its size and, where it is known, its purpose."""
        purpose = self.group_names.get(group.group_name, "")
        return f"{purpose or f'group {group.group_name}'} of {group.size()}"

    def count_kernel(self, operator: Any, name: str, arguments: Any, result: Any) -> None:
        """Count an operator of the GPU as a kernel, and notice products in float32."""
        if not has_device_tensor(result) and not has_device_tensor(arguments):
            return
        self.kernels[self.phase, f"{operator.namespace}.{name}"] += 1
        self.tally.count(self.phase, sys._getframe(2), name, arguments, result)
        if name in PRODUCTS and self.is_16_bit and isinstance(result, Tensor):
            left = next(one for one in reversed(arguments[:-1]) if isinstance(one, Tensor))
            if left.dtype == torch.float32:
                operations = 2 * result.numel() * left.shape[-1]
                if operations > SMALL_PRODUCT:
                    self.float32_products[self.name_line(find_place().line)] += operations


def run_on_shapes(operator: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """The result of an operator; torch 2.11 has no fake one that adds a product in float32."""
    if operator is aten.addmm.dtype_out:
        return options["out"]
    return operator(*arguments, **options)


@lru_cache(maxsize=4096)
def purpose_of_file(file: str) -> str:
    """What memory that is asked for in a file is for; empty: that depends on who called it."""
    return next((purpose for part, purpose in PURPOSES if file.startswith(part)), "")


def is_on_device(value: Any) -> bool:
    """Whether a value is a tensor of the GPU."""
    return isinstance(value, Tensor) and value.device.type == "cuda"


def has_device_tensor(values: Any) -> bool:
    """Whether there is a tensor of the GPU among values."""
    if isinstance(values, (list, tuple)):
        return any(has_device_tensor(one) for one in values)
    return is_on_device(values)


def bytes_of(value: Any) -> int:
    """Bytes of the tensors among values."""
    if isinstance(value, (list, tuple)):
        return sum(map(bytes_of, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def describe_size(num_bytes: int) -> str:
    """Bytes as people say them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"

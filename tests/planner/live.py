"""Bytes of tensors that are alive in a process, storage by storage as operators make them."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts what operators allocate inside; what was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        known = {id(one.untyped_storage()) for one in tree_leaves(arguments) if is_plain(one)}
        result = operator(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if is_plain(tensor) and id(tensor.untyped_storage()) not in known:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        key = id(storage)
        if key in self.sizes or not storage.nbytes():
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        """Forget a storage that was freed."""
        self.now -= self.sizes.pop(key)


def is_plain(value: object) -> bool:
    """Whether a value is a tensor with memory of its own kind."""
    return isinstance(value, Tensor) and value.layout == torch.strided

"""Arrays of the host on the GPU, in one copy from page-locked memory, which nothing waits for.

A copy from plain memory lets the CPU wait until the GPU has done all that it was told before, and
then both start from nothing. Seven arrays a micro-step were seven such waits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes, at which a tensor of any dtype may begin


def copy_together(arrays: Sequence[npt.NDArray[Any]], device: torch.device | str) -> list[Tensor]:
    """The arrays as tensors of the same shapes and dtypes: views of one storage on the device.

    Args:
        arrays: of dtypes that torch knows; they may change as soon as this returns.
        device: of the tensors.
    """
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // ALIGNMENT) * ALIGNMENT)
    packed = np.zeros(starts[-1], dtype=np.uint8)
    for start, array in zip(starts, arrays, strict=False):
        packed[start : start + array.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
    whole = torch.from_numpy(packed)
    if torch.device(device).type == "cuda":
        # torch keeps the page-locked block until the copy is done, also where we drop it.
        whole = whole.pin_memory().to(device, non_blocking=True)
    return [
        whole[start : start + array.nbytes].view(torch_dtype(array)).view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


def torch_dtype(array: npt.NDArray[Any]) -> torch.dtype:
    """The dtype that torch gives an array."""
    return torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype

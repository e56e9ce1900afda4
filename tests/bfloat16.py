"""Products in bfloat16, by those in float32 where the processor has none of its own.

Without AVX-512 torch multiplies bfloat16 element by element, 10 to 25 times slower than float32.
Each product is rounded once, as processors that can do it round.
"""

import warnings
from functools import partial
from typing import Any

import torch
from torch import DispatchKeySet, Tensor
from torch.library import Library, get_kernel
from torch.utils._pytree import tree_map

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm")
OUT = tuple(f"{name}.out" for name in PRODUCTS[:-1])


def speed_up_bfloat16() -> Library | None:
    """Replace torch's products in bfloat16 for as long as what is returned lives."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in (*PRODUCTS, *OUT):
            product = partial(multiply, get_kernel(f"aten::{name}", "CPU"))
            library.impl(name, product, "CPU", with_keyset=True)
    return library


def multiply(kernel: Any, keys: DispatchKeySet, *factors: Any, **options: Any) -> Tensor:
    """What the kernel gives for these factors, computed in float32 if they are bfloat16."""
    if factors[0].dtype != torch.bfloat16:
        return kernel.call_boxed(keys, *factors, **options)
    out = options.get("out")
    result = kernel.call_boxed(keys, *tree_map(widen, factors), **tree_map(widen, options))
    return result.bfloat16() if out is None else out.copy_(result)


def widen(value: Any) -> Any:
    """A tensor of bfloat16 as float32; all else as it is."""
    is_narrow = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_narrow else value

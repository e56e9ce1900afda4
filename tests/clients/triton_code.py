"""The code that Triton makes of a kernel, without a GPU; imported where triton is installed."""

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BYTES = {"bf16": 2, "f16": 2, "f32": 4, "i8": 1, "i32": 4}
ACCESS = re.compile(r"tt\.(load|store) .*?tensor<([\dx]+)x!tt\.ptr<(\w+)>")
LOCAL = re.compile(r"\.local [^\n]*\[(\d+)\]")


class Code:
    """A kernel for one kind of GPU."""

    def __init__(
        self,
        kernel: Any,
        signature: Mapping[str, str],
        constants: Mapping[str, object],
        capability: int,
        whole: Iterable[str] = (),
        **options: object,
    ) -> None:
        """Compile it.

        Args:
            kernel: by `triton.jit`.
            signature: the type of each argument, by name.
            constants: values of those of type constexpr.
            capability: of the GPU: 90 for Hopper.
            whole: addresses, widths and strides that are whole 16 bytes in a launch.
            options: of Triton.
        """
        attributes = {(kernel.arg_names.index(one),): [["tt.divisibility", 16]] for one in whole}
        source = ASTSource(
            fn=kernel, signature=dict(signature), constexprs=dict(constants), attrs=attributes
        )
        target = GPUTarget("cuda", capability, 32)
        self.asm = triton.compile(source, target=target, options=options).asm

    def accesses(self) -> list[tuple[str, int, str]]:
        """Each load or store of a block: which it is, elements, and their type."""
        return [
            (operation, prod(map(int, shape.split("x"))), kind)
            for operation, shape, kind in ACCESS.findall(self.asm["ttir"])
        ]

    def sizes(self) -> dict[str, int]:
        """Bytes of local memory, where registers do not suffice, and of the code itself."""
        return {
            "local_bytes": sum(map(int, LOCAL.findall(self.asm["ptx"]))),
            "binary_bytes": len(self.asm["cubin"]),
        }

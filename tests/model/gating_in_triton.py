"""What Triton makes of the weighted SwiGLU, without a GPU; run where triton is installed.

    TRITON_INTERPRET=1 python -m tests.model.gating_in_triton compare
    python -m tests.model.gating_in_triton compile

`compare` runs both kernels in Triton's interpreter beside the formula in float64; `compile` makes
code for Hopper and for Ampere and counts what it reads and writes. Both print JSON.
"""

import json
import re
import sys

import torch
from torch import Tensor

from hunyuan_train.model import gating_kernel
from hunyuan_train.model.gating_kernel import BLOCK, NUM_WARPS
from tests.clients.triton_code import BYTES, Code

ROWS = 7
WIDTHS = (3072, 200, 1)  # the released one, and no whole blocks
HOPPER, AMPERE = 90, 80
NARROW = re.compile(r"ld\.global[.\w:]*\.b(?:8|16)|st\.global[.\w:]*\.b(?:8|16) ")


def by_formula(gate: Tensor, up: Tensor, weights: Tensor, gradient: Tensor) -> list[Tensor]:
    """The result and the gradients of all three, by autograd in float64."""
    leaves = [one.double().detach().requires_grad_() for one in (gate, up, weights)]
    result = torch.nn.functional.silu(leaves[0]) * leaves[1] * leaves[2][:, None]
    result.backward(gradient.double())
    return [result.detach(), *(one.grad for one in leaves)]


def distance(got: Tensor, wanted: Tensor) -> float:
    """Between two tensors, by the length of the second."""
    return float((got.double() - wanted).norm() / wanted.norm())


def compare() -> dict[str, list[float]]:
    """Distances of the result and of each gradient."""
    found = {}
    for width in WIDTHS:
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(0)
            both = (2 * torch.randn(ROWS, 2 * width, generator=generator)).to(dtype)
            gradient = torch.randn(ROWS, width, generator=generator).to(dtype)
            weights = torch.rand(ROWS, generator=generator)
            weights[2] = 0  # as of padding
            for kind in ("side by side", "apart"):
                gate, up = both.chunk(2, dim=-1)
                if kind == "apart":
                    gate, up = gate.contiguous(), up.contiguous()
                wanted = by_formula(gate, up, weights, gradient)
                got = [gating_kernel.forward(gate, up, weights)]
                got += gating_kernel.backward(gradient, gate, up, weights)
                assert [one.dtype for one in got] == [dtype, dtype, dtype, torch.float32]
                pairs = zip(got, wanted, strict=True)
                found[f"{width} {dtype} {kind}"] = [distance(*pair) for pair in pairs]
    return found


def compile_for(name: str, capability: int) -> dict[str, float]:
    """Bytes that an element moves, by the code that Triton makes."""
    kernel = getattr(gating_kernel, f"{name}_kernel")
    numbers = ("width", "gate_row", "up_row")
    kinds = {"weights_at": "*fp32", "of_weights_at": "*fp32", "BLOCK": "constexpr"}
    kinds |= dict.fromkeys(numbers, "i32")
    signature = {one: kinds.get(one, "*bf16") for one in kernel.arg_names}
    # As a launch finds them: addresses, widths and strides of whole 16 bytes.
    whole = [one for one in kernel.arg_names if one != "BLOCK"]
    constants = {"BLOCK": BLOCK}
    code = Code(kernel, signature, constants, capability, whole, num_warps=NUM_WARPS)
    return {
        "bytes": sum(number * BYTES[kind] for _, number, kind in code.accesses()) / BLOCK,
        "narrow": len(NARROW.findall(code.asm["ptx"])),
        **code.sizes(),
    }


def main() -> None:
    if sys.argv[1] == "compare":
        found: dict = compare()
    else:
        found = {
            f"{name} sm_{capability}": compile_for(name, capability)
            for name in ("forward", "backward")
            for capability in (HOPPER, AMPERE)
        }
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()

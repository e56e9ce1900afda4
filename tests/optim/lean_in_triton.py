"""What Triton makes of the update of lean, without a GPU; run where triton is installed.

    TRITON_INTERPRET=1 python -m tests.optim.lean_in_triton compare|break
    python -m tests.optim.lean_in_triton compile

`compare` runs the kernel in Triton's interpreter beside the plain update; `break` asks for one that
Triton refuses; `compile` makes code for Hopper and counts what it reads and writes. All print JSON.
"""

import json
import re
import sys

import torch

from hunyuan_train.optim import lean, lean_kernel
from hunyuan_train.optim.lean_memory import LEAN_BLOCK
from tests.clients.triton_code import BYTES, Code

CPU = torch.device("cpu")
# Whole blocks, a rest whose last group is not full, less than a block, less than two groups.
SIZES = (4 * LEAN_BLOCK, 3 * LEAN_BLOCK + 513, 512, 13)
SIGNATURE = {
    "weights_at": "*bf16",
    "gradients_at": "*bf16",
    "first_at": "*i8",
    "first_scales_at": "*fp32",
    "second_at": "*u8",
    "second_scales_at": "*fp32",
    "first_values_at": "*fp32",
    "second_values_at": "*fp32",
    "numbers_at": "*fp32",
    "low_at": "*i32",
    "high_at": "*i32",
    "moved_at": "*i32",
    "num_elements": "i32",
    "IS_ROUNDED": "constexpr",
    "GROUPS": "constexpr",
}
SCALARS = re.compile(r"tt\.(?:load|store) [^\n]*: !tt\.ptr<")


def compare() -> dict[str, list[float]]:
    """After three steps: the share of weights that differ, by how much, and how many moved."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for size in SIZES:
            start = (lean.random_bits(torch.Size([size]), 1, 0, CPU) * 1e-11).to(dtype)
            plain, fused = (
                lean.updated(one, CPU, size, dtype) for one in (None, lean_kernel.update_flat)
            )
            found[f"{dtype} {size}"] = [
                float((plain != fused).float().mean()),
                float((plain.float() - fused.float()).abs().max()),
                float((fused != start).float().mean()),
            ]
    return found


def compile_for_hopper() -> dict[str, float]:
    """Bytes that a weight's update moves, by the code that Triton makes; tables are cached."""
    constants = {"IS_ROUNDED": True, "GROUPS": lean_kernel.GROUPS}
    options = {"num_warps": lean_kernel.NUM_WARPS, "enable_fp_fusion": False}
    code = Code(lean_kernel.update_kernel, SIGNATURE, constants, 90, **options)
    blocks = [
        number * BYTES[kind]
        for operation, number, kind in code.accesses()
        if (operation, kind) != ("load", "f32")  # `code_values`
    ]
    scalars = SCALARS.findall(code.asm["ttir"])
    return {"bytes": (sum(blocks) + 4 * len(scalars)) / LEAN_BLOCK, **code.sizes()}


def break_it() -> str:
    """What the optimizer says of a kernel that Triton refuses."""
    lean_kernel.GROUPS = 3  # of no power of two
    optimizer = lean.LeanAdamW([{"params": [torch.zeros(8)]}], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    try:
        optimizer.compile_update(CPU)
    except RuntimeError as error:
        return str(error)
    return "it was compiled"


if __name__ == "__main__":
    ask = {"compare": compare, "break": break_it, "compile": compile_for_hopper}[sys.argv[1]]
    found = ask()
    sys.stdout.write(f"{json.dumps(found)}\n")

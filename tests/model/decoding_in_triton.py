"""What Triton makes of the decoding of experts, without a GPU; run where triton is installed.

    TRITON_INTERPRET=1 python -m tests.model.decoding_in_triton compare
    python -m tests.model.decoding_in_triton compile

`compare` runs the kernel in Triton's interpreter beside the plain decoding, on pieces as training
takes them; `compile` makes code for Hopper and for Ampere and counts what it reads and writes. Both
print JSON.
"""

import json
import re
import sys
from collections.abc import Iterator

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from hunyuan_train.model import decoding_kernel
from hunyuan_train.model.compressed_values import FLOAT8, decode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.decoding_kernel import FORMS, NUM_WARPS, decode_piece, find_tile
from tests.clients.triton_code import BYTES, Code

SCHEMES = (
    *(Scheme("tensor"), Scheme("channel"), Scheme("block")),
    *(Scheme("group", 32), Scheme("group", 128, "gptq"), Scheme("group", 96)),
    *(Scheme("nf4", 64), Scheme("nf4", 32)),
)
EXPERTS, ROWS, COLUMNS = 2, 200, 384  # no whole tiles, nor whole blocks of rows
HOPPER, AMPERE = 90, 80  # one with FP8 in hardware, one without
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
NARROW = re.compile(r"ld\.global[.\w:]*\.b8|st\.global[.\w:]*\.b(?:8|16) ")


def mend_interpreter() -> None:
    """Let it round float32 to bfloat16 as GPUs do; it rounds ties up, and carries nothing."""
    convert = interpreter._convert_float

    def convert_exactly(values: np.ndarray, given: tl.dtype, wanted: tl.dtype, mode: object):
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return convert(values, given, wanted, mode)
        floats = np.frombuffer(values.tobytes(), dtype=np.float32).copy()
        rounded = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy()
        return rounded.view(np.uint16).reshape(values.shape)

    interpreter._convert_float = convert_exactly


def make_codes(scheme: Scheme, scales_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every byte there is, NaN of FP8 too, and scales of many sizes, of some experts."""
    generator = torch.Generator().manual_seed(0)
    width = COLUMNS // 2 if scheme.is_4bit else COLUMNS
    codes = torch.randint(256, (EXPERTS, ROWS, width), dtype=torch.uint8, generator=generator)
    shape = (EXPERTS, *scheme.scales_shape(ROWS, COLUMNS))
    sizes = 10.0 ** torch.arange(-EXPERTS, 0)
    scales = torch.randn(shape, generator=generator) * sizes[:, None, None]
    if scheme.strategy == "group":
        codes = codes.view(torch.int32)
    return codes if scheme.is_4bit else codes.view(FLOAT8), scales.to(scales_dtype)


def pieces(codes: Tensor, scales: Tensor, scheme: Scheme) -> Iterator[tuple[Tensor, Tensor]]:
    """All of it, some rows and some columns, where they lie."""
    high, wide = scheme.block_rows, scheme.block_columns
    yield codes, scales
    yield codes[:, 128:], scales[:, 128 // high :] if high else scales
    if wide in (0, 32, 64, 128):
        part = codes.shape[2] // 3
        yield codes[..., part:], scales[..., 128 // wide :] if wide else scales


def compare() -> dict[str, int]:
    """The number of weights that are another one than by the plain decoding, of each form."""
    mend_interpreter()
    found = {}
    for scheme in SCHEMES:
        is_nf4 = scheme.strategy == "nf4"
        for scales_dtype in (torch.float32,) if is_nf4 else POINTERS:
            for dtype in (torch.bfloat16, torch.float32):
                whole = make_codes(scheme, scales_dtype)
                differing = 0
                for codes, scales in pieces(*whole, scheme):
                    plain = decode(codes, scales, scheme, dtype)
                    got = decode_piece(codes, scales, scheme, dtype)
                    assert got.shape == plain.shape
                    assert got.dtype == plain.dtype
                    differing += int((~is_same(got, plain)).sum())
                found[f"{scheme.title} {scales_dtype} {dtype}"] = differing
    return found


def is_same(one: Tensor, other: Tensor) -> Tensor:
    """Which numbers have the same bits, signs of zeros included, or are both NaN."""
    whole = torch.int16 if one.dtype == torch.bfloat16 else torch.int32
    return (one.view(whole) == other.view(whole)) | (one.isnan() & other.isnan())


def compile_for(scheme: Scheme, capability: int) -> dict[str, float]:
    """Bytes that a weight's decoding moves, by the code that Triton makes; tables are cached."""
    is_nf4 = scheme.strategy == "nf4"
    tile = {"FORM": FORMS.get(scheme.strategy, "fp8"), **find_tile(4096, scheme)}
    numbers = [f"{name}_{axis}" for name in ("codes", "scales") for axis in ("expert", "row")]
    signature = {
        "codes_at": "*u8",
        "scales_at": "*fp32" if is_nf4 else "*bf16",
        "levels_at": "*fp32",
        "values_at": "*bf16",
        **dict.fromkeys(["num_rows", "width", *numbers, "scales_column"], "i32"),
        **dict.fromkeys(tile, "constexpr"),
    }
    kernel = decoding_kernel.decode_kernel
    # As a launch finds them: addresses, widths and strides of whole 16 bytes.
    whole = ["codes_at", "scales_at", "levels_at", "values_at", "width", *numbers[:3]]
    code = Code(kernel, signature, tile, capability, whole, num_warps=NUM_WARPS)
    weights = tile["GROUPS"] * tile["WIDE"] * tile["HEIGHT"]
    # The table of levels is asked once a weight, and always in the cache.
    moved = [
        number * BYTES[kind]
        for _, number, kind in code.accesses()
        if (number, kind) != (weights, "f32")
    ]
    return {
        "bytes": sum(moved) / weights,
        # Codes are read, and weights written, 16 bytes at a time.
        "narrow": len(NARROW.findall(code.asm["ptx"])),
        **code.sizes(),
    }


def main() -> None:
    if sys.argv[1] == "compare":
        found: dict = compare()
    else:
        found = {
            f"{scheme.title} sm_{capability}": compile_for(scheme, capability)
            for scheme in SCHEMES
            if scheme.group_size != 96  # no base has it, and its tiles have empty lanes
            for capability in (HOPPER, AMPERE)
        }
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()

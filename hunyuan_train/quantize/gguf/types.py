"""The types of GGUF files that are made here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GgufType:
    """How llama.cpp writes most weights of a file."""

    number: int  # in llama.h: LLAMA_FTYPE_MOSTLY_...
    bits: float  # of a weight, about; what is small is stored wider
    # By which a tensor's weights may change, all together, by the norm of all: twice what is usual.
    most_error: float
    converted: str = ""  # what the converter calls it; "": made by the quantiser


# Below 3.5 bits llama.cpp asks for a file of importances, which is not made here.
TYPES = {
    "f32": GgufType(0, 32.0, 0.0, "f32"),
    "f16": GgufType(1, 16.0, 0.005, "f16"),
    "bf16": GgufType(32, 16.0, 0.005, "bf16"),
    "Q8_0": GgufType(7, 8.5, 0.02, "q8_0"),
    "Q6_K": GgufType(18, 6.6, 0.05),
    "Q5_K_M": GgufType(17, 5.7, 0.08),
    "Q5_K_S": GgufType(16, 5.6, 0.08),
    "Q4_K_M": GgufType(15, 4.9, 0.2),
    "Q4_K_S": GgufType(14, 4.6, 0.2),
    "Q4_0": GgufType(2, 4.6, 0.2),
    "IQ4_XS": GgufType(30, 4.3, 0.2),
    "Q3_K_M": GgufType(12, 3.9, 0.35),
}

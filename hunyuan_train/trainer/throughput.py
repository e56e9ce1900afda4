"""What a step did for its time: tokens, floating-point operations, and how full its rows were.

Operations are those that the model needs, as in PaLM's appendix B (arXiv 2204.02311): recomputed
ones do not count, and the share of the GPU's peak that they reach is the model FLOPs utilisation.
"""

from dataclasses import dataclass

import psutil
import torch

from hunyuan_train.data.batches.loader import StepContent
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.json_lines import Numbers
from hunyuan_train.parallel.engine import max_over_ranks, peak_memory_gib


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Turns the content of a step and its seconds into rates."""

    shape: ModelShape
    num_ranks: int
    row_length: int  # tokens that a row holds
    trains_all: bool  # every weight, not adapters beside frozen ones
    peak_flops: float | None  # of one GPU; None where it is not known, as on a CPU

    def measure(self, content: StepContent, seconds: float) -> Numbers:
        """Rates of one step."""
        flops = training_flops(self.shape, content, trains_all=self.trains_all)
        rate = flops / seconds / self.num_ranks
        numbers: Numbers = {
            "tokens_per_second": content.num_tokens / seconds,
            "tokens_per_second_per_gpu": content.num_tokens / seconds / self.num_ranks,
            "tflops_per_gpu": rate / 1e12,
            "packing_efficiency": content.num_tokens / (content.num_rows * self.row_length),
        }
        if self.peak_flops:
            numbers["mfu"] = rate / self.peak_flops
        return numbers


def training_flops(shape: ModelShape, content: StepContent, *, trains_all: bool) -> float:
    """Operations that the model needs for a step: forward, and backward twice as many.

    A token takes two for each weight that acts on it, and each sample of T tokens 2 T^2 in a layer
    for each element of the attention heads: two products (scores, and their sum of values) of two
    operations, over half of T x T because attention is causal. Frozen weights get no gradient, so
    that adapters save one of three products with weights.
    """
    # An embedding is looked up, not multiplied; where it is tied, its weights are the output's.
    looked_up = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    weights = count_parameters(shape).active - looked_up
    heads = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    attention = 2.0 * heads * content.sum_of_squares
    products = 3 if trains_all else 2
    return products * 2.0 * weights * content.num_tokens + 3 * attention


def measure_memory(device: torch.device) -> Numbers:
    """Memory of the fullest process, in GiB, and of its machine; every rank takes part."""
    memory = psutil.virtual_memory()
    numbers: Numbers = {
        "memory_gib": peak_memory_gib(),
        "host_memory_gib": psutil.Process().memory_info().rss / 2**30,
        "host_memory_used": (memory.total - memory.available) / memory.total,
    }
    if torch.cuda.is_available():
        numbers["gpu_memory_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    fullest = max_over_ranks(list(map(float, numbers.values())), device)
    return dict(zip(numbers, fullest, strict=True))

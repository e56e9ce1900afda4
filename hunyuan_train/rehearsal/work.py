"""What the GPU has to do: operations, bytes that kernels read and write, and how many kernels.

Counted from the arguments and results of every operator, for the items of the planner's speed
model (`planner/work.py`), which is tested against these counts. A kernel reads each tensor that it
is given once, and writes each that it gives back once. What a cache spares is not known here.

In a backward pass autograd runs without a line of Python. There a kernel belongs to the line of the
forward pass that made its node of the graph; both have the same number.
"""

from collections import Counter, defaultdict
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.planner.work import Item, Work
from hunyuan_train.rehearsal.lines import short_name

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"})
# Operators that read, of their first tensor, only what they give: rows by index.
SELECTING = frozenset({"index", "index_select", "gather", "embedding"})
# Operators that do not read their first tensor: they write it, or make another one like it.
OVERWRITING = frozenset(
    {
        *("copy_", "zero_", "fill_", "zeros_like", "ones_like", "full_like"),
        *("new_zeros", "new_ones", "new_full"),
    }
)
# Those that change some places of their first tensor, as many as their last tensor has.
SCATTERING = frozenset({"index_put_", "index_put", "scatter_add_", "index_add_", "scatter_"})
ATTENTION = ("flash_attention", "varlen_attn", "scaled_dot_product")


# Where code stands, by file and by name in it, innermost first: what it works for.
PLACES = (
    ("optim/lean.py", "", Item.UPDATE),
    ("torch/optim/", "", Item.UPDATE),
    ("model/label_losses.py", "", Item.LOSS),
    ("model/fused.py", "run_norm", Item.NORMS),
    ("model/fused.py", "run_mlp", Item.GATES),
    ("rehearsal/stand_ins.py", "FusedNorm", Item.NORMS),
    ("rehearsal/stand_ins.py", "FusedRope", Item.ROPE),
    ("rehearsal/stand_ins.py", "FusedGate", Item.GATES),
    ("model/loss.py", "", Item.LOSS),
    ("transformers/models/", "RMSNorm.forward", Item.NORMS),
    ("transformers/models/", "rotate_half", Item.ROPE),
    ("transformers/models/", "apply_rotary_pos_emb", Item.ROPE),
    ("transformers/models/", "RotaryEmbedding.forward", Item.ROPE),
    ("transformers/models/", "Attention.forward", Item.HEADS),
    ("transformers/models/", "MLP.forward", Item.GATES),
    ("transformers/models/", "DecoderLayer.forward", Item.SUMS),
    ("model/attention.py", "", Item.HEADS),
    ("parallel/sequence.py", "", Item.HEADS),
    ("parallel/expert_lora.py", "", Item.ADAPTERS),
    ("peft/tuners/lora/", "", Item.ADAPTERS),
    ("parallel/quantised_experts.py", "", Item.CODES),
    ("model/compressed_values.py", "", Item.CODES),
    ("deepspeed/moe/ep_router.py", "", Item.ROUTING),
    ("deepspeed/moe/ep_count.py", "", Item.ROUTING),
    ("model/router.py", "", Item.ROUTING),
    ("model/kept_plans.py", "", Item.ROUTING),
    ("parallel/routers.py", "", Item.ROUTING),
    ("objectives/router_losses.py", "", Item.ROUTING),
    ("deepspeed/moe/ep_experts.py", "", Item.GATES),
    ("deepspeed/moe/ep_kernels.py", "", Item.ROWS),
    ("deepspeed/module_inject/auto_ep_layer.py", "_finalize_output", Item.SUMS),
    ("parallel/expert_layer.py", "add_shared", Item.SUMS),
    ("parallel/expert_layer.py", "", Item.ROWS),
    ("parallel/row_order.py", "", Item.ROWS),
    ("parallel/row_weights.py", "", Item.GATES),
    ("parallel/token_exchange.py", "", Item.ROWS),
    ("deepspeed/module_inject/auto_ep_layer.py", "", Item.ROWS),
    ("model/expert_microbatches.py", "", Item.ROWS),
    ("deepspeed/runtime/zero/linear.py", "", Item.SUMS),
    ("parallel/own_gradients.py", "", Item.ZERO),
    ("deepspeed/runtime/", "", Item.ZERO),
    ("torch/_tensor.py", "backward", None),
)


class Tally:
    """Counts by phase and item; of one pretended GPU."""

    def __init__(self) -> None:
        self.work: defaultdict[tuple[str, Item], Work] = defaultdict(Work)
        self.lines: Counter[tuple[str, str, str]] = Counter()  # bytes, by phase, item and line
        self.of_node: dict[int, tuple[Item, str]] = {}  # by number of the forward pass

    def clear(self) -> None:
        """Begin anew."""
        self.work.clear()
        self.lines.clear()
        self.of_node.clear()

    def add(self, phase: str, item: Item, line: str, done: Work) -> None:
        """Count work."""
        self.work[phase, item].add(done)
        self.lines[phase, item.value, line] += done.num_bytes

    def count(
        self,
        phase: str,
        frame: FrameType,
        name: str,
        arguments: Any,
        result: Any,
        *,
        num_bytes: int = 0,
    ) -> None:
        """Count an operator that starts a kernel.

        Args:
            phase: of the step.
            frame: of its caller.
            name: of the operator.
            arguments: that it was given.
            result: that it gave.
            num_bytes: that it moves besides.
        """
        item, line, is_again = self.find(phase, frame)
        done = Work(kernels=1, num_bytes=num_bytes + moved_bytes(name, arguments, result))
        if name in PRODUCTS:
            done.flops = product_flops(name, arguments, result)
            item = item_of_product(name, arguments)
        elif any(part in name for part in ATTENTION):
            done.flops = attention_flops(name, arguments)
            item = Item.ATTENTION
        self.add("again" if is_again else phase, item, f"{line} {name}", done)

    def find(self, phase: str, frame: FrameType) -> tuple[Item, str, bool]:
        """Item and line of what runs now, and whether it was computed before."""
        found, is_again = place_of(frame)
        is_again = is_again and phase == "backward"
        if phase == "backward" and not is_again and found is None:
            node = torch._C._current_autograd_node()
            if node is not None:
                known = self.of_node.get(node._sequence_nr(), (Item.OTHER, node.name()))
                return *known, False
        item, line = found or (Item.OTHER, "torch")
        if phase == "forward":
            number = torch.autograd._get_sequence_nr() - 1
            self.of_node.setdefault(number, (item, line))
        return item, line, is_again


def place_of(frame: FrameType | None) -> tuple[tuple[Item, str] | None, bool]:
    """Item and line of the nearest caller whose code is known, and whether a layer runs again."""
    found = None
    while frame is not None:
        code = frame.f_code
        if found is None:
            item = item_of_code(code)
            found = (item, f"{code.co_qualname}:{frame.f_lineno}") if item else None
        if code.co_name == "unpack_hook" and short_name(code) == "torch/utils/checkpoint.py":
            return found, True
        frame = frame.f_back
    return found, False


@lru_cache(maxsize=8192)
def item_of_code(code: CodeType) -> Item | None:
    """What a function works for; None: its caller knows."""
    file, name = short_name(code), code.co_qualname
    for part, function, item in PLACES:
        if part in file and function in name:
            return item
    return None


def item_of_product(name: str, arguments: Any) -> Item:
    """Products run at the rate of their dtype, and those of experts have an item of their own."""
    if name == "_grouped_mm":
        return Item.EXPERTS
    is_wide = any(isinstance(one, Tensor) and one.dtype == torch.float32 for one in arguments[-2:])
    return Item.FLOAT32 if is_wide else Item.DENSE


def product_flops(name: str, arguments: Any, result: Tensor) -> int:
    """Two operations for each pair of numbers that meet."""
    if name == "_grouped_mm":
        left, right = arguments[:2]
        if right.dim() == 2:  # gradients of weights: groups lie along what is summed over
            return int(2 * left.shape[0] * left.shape[1] * right.shape[1])
        return int(2 * result.numel() * left.shape[-1])
    matrices = [one for one in arguments if isinstance(one, Tensor)][-2:]
    return int(2 * result.numel() * matrices[0].shape[-1])


def attention_flops(name: str, arguments: Any) -> int:
    """Causal: a token sees half of its document; two products forward, five backward.

    All documents are taken to be as long as the longest, which is the number that is there.
    """
    tensors = [one for one in arguments if isinstance(one, Tensor)]
    is_backward = "backward" in name
    query = tensors[1 if is_backward else 0]
    longest = max(one for one in arguments if isinstance(one, int) and not isinstance(one, bool))
    products = 5 if is_backward else 2
    return int(2 * products * query.numel() * longest // 2)


def moved_bytes(name: str, arguments: Any, result: Any) -> int:
    """Bytes that a kernel reads and writes."""
    written, given = list(tensors_in(result)), list(tensors_in(arguments))
    if name == "copy_" and len(given) == 2 and is_same(*given):
        return 0  # torch sees that there is nothing to do
    if name in SELECTING:
        return sum(map(size_of, [*given[1:], *written, *written]))
    if name in SCATTERING:
        copied = 0 if name.endswith("_") else 2 * size_of(given[0])
        return copied + 3 * size_of(given[-1])
    if name in OVERWRITING:
        given = given[1:]
    return sum(map(size_of, [*given, *written]))


def tensors_in(values: Any) -> Any:
    """The GPU's tensors among values."""
    if isinstance(values, (list, tuple)):
        for one in values:
            yield from tensors_in(one)
    elif isinstance(values, Tensor) and values.device.type == "cuda":
        yield values


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory."""
    return (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def size_of(tensor: Tensor) -> int:
    """Bytes that are behind a tensor: an expanded one has fewer than elements."""
    num_bytes = tensor.numel() * tensor.element_size()
    return min(num_bytes, tensor.untyped_storage().nbytes())

"""Transformers' plain model, for answers, with weights that are what a run's codes mean.

Routed experts stay codes and scales, and those that tokens reach are dequantised one at a time: a
model answers where it was trained, on one card. PEFT adapts parameters only, so that experts with
adapters are dequantised once. All other weights are dequantised once, as in a run.

Shape letters:  T tokens · D hidden · K experts per token
"""

from collections.abc import Mapping

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import fused_shapes, kind_of, stored_tensors
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.build import native_config
from hunyuan_train.model.compressed_values import FLOAT8, decode
from hunyuan_train.model.compressed_weights import load_parameter
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.expert_codes import ComputedBase, ExpertCodes
from hunyuan_train.model.layer_stream import run_each_expert
from hunyuan_train.model.router import fill_router_biases
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.progress import tell_progress


class CodedExperts(nn.Module):
    """Stands in for Transformers' routed experts of a layer: the same function of codes."""

    def __init__(
        self, sizes: Mapping[str, tuple[int, int, int]], scheme: Scheme, dtype: torch.dtype
    ) -> None:
        """Know the projections, by name: [experts, outputs, inputs] each. They have no memory yet.

        Args:
            sizes: of gate_proj, up_proj and down_proj.
            scheme: how they are compressed.
            dtype: of computing.
        """
        super().__init__()
        self.scheme = scheme
        self.dtype = dtype
        for name, (count, rows, columns) in sizes.items():
            num_bytes = columns // 2 if scheme.is_4bit else columns
            size = (count, rows, num_bytes)
            self.register_buffer(f"{name}_codes", torch.empty(size, dtype=torch.uint8))
            size = (count, *scheme.scales_shape(rows, columns))
            self.register_buffer(f"{name}_scales", torch.empty(size, dtype=dtype))

    def put(self, tensor: StoredTensor, codes: Tensor, scales: Tensor, device: str) -> None:
        """Take over the codes and scales of one projection of one expert."""
        _, expert, name = tensor.name.removesuffix(".weight").rsplit(".", 2)
        for part, values in (("codes", codes.view(torch.uint8)), ("scales", scales)):
            kept = self.get_buffer(f"{name}_{part}")
            if kept.is_meta:  # scales of the dtype in which they are stored
                kept = torch.empty(kept.shape, dtype=values.dtype, device=device)
                setattr(self, f"{name}_{part}", kept)
            kept[int(expert)].copy_(values)

    def weight(self, name: str, expert: int) -> Tensor:
        """One projection of one expert, dequantised: [outputs, inputs]."""
        codes = self.get_buffer(f"{name}_codes")[expert]
        if self.scheme.strategy == "group":
            codes = codes.view(torch.int32)  # words of eight codes
        elif not self.scheme.is_4bit:
            codes = codes.view(FLOAT8)
        scales = self.get_buffer(f"{name}_scales")[expert]
        return decode(codes, scales, self.scheme, self.dtype)

    def forward(self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The weighted sum of what each token's experts make of it: [tokens, hidden]."""
        return run_each_expert(hidden_TD, experts_TK, weights_TK, self._run)

    def _run(self, expert: int, hidden_TD: Tensor) -> Tensor:
        gate, up = (
            functional.linear(hidden_TD, self.weight(name, expert))
            for name in ("gate_proj", "up_proj")
        )
        return functional.linear(functional.silu(gate) * up, self.weight("down_proj", expert))


@torch.no_grad()
def load_quantised_model(
    shape: ModelShape,
    source: WeightSource,
    codes: ExpertCodes | None,
    dtype: torch.dtype,
    *,
    keeps_codes: bool,
) -> PreTrainedModel:
    """Load a model over the GPUs here, or into the host's memory where there is none.

    Args:
        shape: of the model.
        source: of its weights.
        codes: of its routed experts; None where these are not quantised.
        dtype: of computing; routers compute in float32, as in a run.
        keeps_codes: of routed experts; PEFT can adapt them where this is false.

    Raises:
        ConfigError: it does not fit on the GPUs, or see `WeightSource`.
    """
    model = build_empty_model(
        shape, codes.scheme if codes is not None and keeps_codes else None, dtype
    )
    places = find_places(model)
    computed = ComputedBase(source, codes) if codes is not None else source
    family = family_of(shape)
    for name, empty in list(model.named_parameters()):
        is_router = kind_of(family, name) is Kind.ROUTER
        values = torch.empty(
            empty.shape,
            dtype=torch.float32 if is_router else dtype,
            device=_place_of(name, places),
        )
        load_parameter(values, stored_tensors(family, name, tuple(empty.shape)), computed)
        module, _, own_name = name.rpartition(".")
        parameter = nn.Parameter(values, requires_grad=False)
        setattr(model.get_submodule(module), own_name, parameter)
        tell_progress()
    for name, module in model.named_modules():
        if isinstance(module, CodedExperts):
            assert codes is not None, "there are coded experts"
            _fill(module, name, shape, codes, _place_of(name, places))
    model.tie_weights()
    fill_router_biases(model, source)
    return model if set(places.values()) == {"cpu"} else dispatch_model(model, places)


def build_empty_model(
    shape: ModelShape, scheme: Scheme | None, dtype: torch.dtype
) -> PreTrainedModel:
    """Transformers' model without memory for its weights.

    Args:
        shape: of the model.
        scheme: of routed experts that stay codes; None: all are parameters.
        dtype: of parameters.
    """
    with init_empty_weights(include_buffers=False):  # frequencies of the rope are buffers
        model = AutoModelForCausalLM.from_config(native_config(shape), dtype=dtype)
    model.tie_weights()  # which having no memory has undone
    if scheme is None:
        return model
    modules: dict[str, dict[str, tuple[int, int, int]]] = {}
    for fused, parameter in model.named_parameters():
        for tensor in stored_tensors(family_of(shape), fused, tuple(parameter.shape)):
            if tensor.kind is not Kind.EXPERT:
                continue
            projection = tensor.name.removesuffix(".weight").rpartition(".")[2]
            sizes = modules.setdefault(fused.rpartition(".")[0], {})
            rows, columns = tensor.shape
            sizes[projection] = (len(parameter), rows, columns)
    for name, sizes in modules.items():
        with torch.device("meta"):
            experts = CodedExperts(sizes, scheme, dtype)
        model.set_submodule(name, experts)
    return model


def _fill(
    experts: CodedExperts, name: str, shape: ModelShape, codes: ExpertCodes, device: str
) -> None:
    """Read the codes of a layer's experts."""
    for fused, size in fused_shapes(shape).items():
        if fused.rpartition(".")[0] == name:
            for tensor in stored_tensors(family_of(shape), fused, size):
                experts.put(tensor, *codes.read_experts(tensor), device)


def find_places(model: PreTrainedModel) -> dict[str, str]:
    """Where the parts of a model go: the GPUs in turn, a layer whole on one; or the host.

    Raises:
        ConfigError: the GPUs are too small.
    """
    if not torch.cuda.is_available():
        return {"": "cpu"}
    found = infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
    if not all(isinstance(place, int) for place in found.values()):
        raise ConfigError(
            "the model does not fit on the GPUs here, even with its experts in codes where no "
            "adapter is for them; use more or larger GPUs, or hide them (CUDA_VISIBLE_DEVICES=) "
            "to answer on the CPU, which takes long"
        )
    return {name: f"cuda:{place}" for name, place in found.items()}


def _place_of(name: str, places: Mapping[str, str]) -> str:
    """The device of a parameter or module: that of the innermost module which is listed."""
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]

"""The measure of all cases: a plain model in float64, one process, one sample at a time.

It is Transformers' own class, or for hy_v3 one written from its formulas (`plain_hy_v3.py`).

Nothing here comes from the training path: no engine, no packing, plain attention, every logit,
plain cross entropy, torch's clipping and optimizers. Labels are taken from the samples themselves.
Names of tensors and targets, and where adapters start, stand here once more on purpose.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from unittest.mock import patch

import numpy as np
import peft
import torch
from peft.utils import transformers_weight_conversion
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedModel

from hunyuan_train.config.schema import LoraConfig, ModelConfig, RunConfig
from hunyuan_train.data.dataset import SampleTokens
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import SPANS
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.selftest.plain_hy_v3 import HY_V3, PlainHyV3
from hunyuan_train.selftest.plain_quantisation import PlainlyQuantised
from hunyuan_train.selftest.preference_reference import Known, judge_steps, preference_loss
from hunyuan_train.selftest.record import Parts, Record
from hunyuan_train.selftest.samples import PAD_ID, TRAINED_ADAPTERS, WEIGHTS, Sample, Step

PLURALS = {"marker": "markers"}
ROUTERS = "*.mlp.gate.*weight"
LINEAR_TARGETS = {
    "attention": r"self_attn\.[qkvo]_proj",
    "mlp": r"mlp\.\w+_proj",
    "shared_mlp": r"mlp\.shared_(mlp|experts)\.\w+_proj",
    "router": r"mlp\.gate\.wg",
}
RELEASED_NAMES = {  # of hy_v3, whose class calls its tensors otherwise
    r"\.mlp\.gate\.(?!wg\.)": ".mlp.router.gate.",
    r"\.mlp\.shared_experts\.": ".mlp.shared_mlp.",
    r"\.mlp\.e_score_correction_bias": ".mlp.expert_bias",
}
NO_LOSS = np.zeros(1, np.uint8)
# What a rank without data runs: it reaches the routers, and nothing else.
FILLER = Sample(SampleTokens(np.array([PAD_ID], np.uint32), NO_LOSS, NO_LOSS.astype("f4")), mode=0)


class InFloat64(TorchDispatchMode):
    """Makes every float32 that the model's code asks for a float64."""

    def __torch_dispatch__(
        self,
        operator: torch._ops.OpOverload,
        types: object,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> object:
        """Run one operator."""
        options = options or {}
        if options.get("dtype") == torch.float32:
            options = options | {"dtype": torch.float64}
        return operator(*arguments, **options)


class ExpertAdapter(nn.Module):
    """The product of each expert's two low-rank matrices, on top of its weight.

    Shape letters:  E experts · R rank · I inputs · O outputs
    """

    def __init__(self, lora_A_ERI: Tensor, num_outputs: int, scaling: float) -> None:
        super().__init__()
        num_experts, rank, _ = lora_A_ERI.shape
        self.lora_A = nn.Parameter(lora_A_ERI)
        self.lora_B = nn.Parameter(torch.zeros(num_experts, num_outputs, rank))
        self.scaling = scaling

    def forward(self, weight_EOI: Tensor) -> Tensor:
        """The adapted weights of all experts."""
        return weight_EOI + self.scaling * self.lora_B @ self.lora_A


def build_reference(config: RunConfig, shape: ModelShape) -> PreTrainedModel:
    """The plain model in float64, with its adapters and what is frozen.

    A bfloat16 run starts from rounded weights, its routers apart.
    """
    form, is_bf16 = config.model.expert_weights, config.train.bf16 is True
    source = WEIGHTS if form == "bf16" else PlainlyQuantised(WEIGHTS, form, is_bf16)
    model = plain_model(shape, source)
    if config.train.bf16 is True:
        for name, parameter in model.named_parameters():
            if not fnmatchcase(name, ROUTERS):
                parameter.data = parameter.data.bfloat16().float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not (config.lora.use_lora or _is_frozen(name, config.model))
    if config.lora.use_lora:
        add_adapters(model, config.lora, seed=config.train.seed)
    if config.lora.adapter_name_or_path:
        adapters = (one for one in released_parameters(model) if "lora_" in one[0])
        fill_tensors(adapters, TRAINED_ADAPTERS)
    return model.double()


def _is_frozen(name: str, config: ModelConfig) -> bool:
    patterns = [one for one in (config.freeze or "").split(",") if one]
    patterns += [ROUTERS] if config.freeze_router else []
    is_outside = config.train_attention_params_only and ".self_attn." not in name
    return is_outside or any(fnmatchcase(name, one.strip()) for one in patterns)


def plain_model(
    shape: ModelShape, source: WeightSource, *, attention: str = "eager", experts: str = "eager"
) -> PreTrainedModel:
    """The plain model with weights, in float32.

    Args:
        shape: of the model.
        source: of the weights.
        attention: how Transformers' class computes it.
        experts: how Transformers' class computes them.
    """
    if shape.family == HY_V3:
        model: Any = PlainHyV3(shape)
    else:
        fields = family_of(shape).native_config(shape)
        plain = AutoConfig.for_model(shape.family, **fields, use_cache=False)
        plain._attn_implementation, plain._experts_implementation = attention, experts
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)](plain)
    biases = [one for one in model.named_buffers() if one[0].endswith("e_score_correction_bias")]
    fill_tensors((*model.named_parameters(), *biases), source)
    return model


@torch.no_grad()
def fill_tensors(named: Iterable[tuple[str, Tensor]], source: WeightSource) -> None:
    """Give a model's tensors the values of the released tensors that they consist of."""
    for name, tensor in named:
        parts = split_name(name, tuple(tensor.shape))
        values = torch.cat([source.read(part, 0, part.numel) for part in parts])
        tensor.copy_(values.view(tensor.shape))


def split_name(name: str, shape: tuple[int, ...]) -> list[StoredTensor]:
    """The released tensors that a parameter of the plain model consists of: one an expert."""
    for pattern, released in RELEASED_NAMES.items():
        name = re.sub(pattern, released, name)
    layer, found, part = name.partition(".mlp.experts.")
    if not found:
        return [StoredTensor(name.replace(".base_layer.", "."), shape)]
    parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
    size = (shape[1] // len(parts), shape[2])
    return [
        StoredTensor(f"{layer}.mlp.experts.{expert}.{one}.weight", size)
        for expert in range(shape[0])
        for one in parts
    ]


def add_adapters(model: PreTrainedModel, lora: LoraConfig, *, seed: int) -> None:
    """PEFT's adapters on linear layers, and products of small matrices on routed experts."""
    names = lora.lora_target_modules.split(",")
    names = [*LINEAR_TARGETS, "experts"] if "all" in names else names
    targets = LINEAR_TARGETS | ({"router": r"mlp\.gate"} if isinstance(model, PlainHyV3) else {})
    linear = [targets.get(name, rf"self_attn\.{name}") for name in names if name != "experts"]
    torch.manual_seed(seed)
    if linear:
        description = peft.LoraConfig(
            r=lora.lora_rank,
            lora_alpha=lora.alpha,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            target_modules=rf".*\.({'|'.join(linear)})",
        )
        # As in training: PEFT would send some targets to the routed experts (model/lora.py).
        name = "convert_peft_config_for_transformers"
        with patch.object(transformers_weight_conversion, name, lambda *_, **__: None):
            peft.inject_adapter_in_model(description, model)
    if "experts" in names:
        _adapt_experts(model, lora, seed=seed)


def _adapt_experts(model: PreTrainedModel, lora: LoraConfig, *, seed: int) -> None:
    scaling = lora.alpha / (lora.lora_rank**0.5 if lora.use_rslora else lora.lora_rank)
    for layer, module in enumerate(model.model.layers):
        experts = module.mlp._modules.get("experts")
        if experts is None:  # a dense model
            continue
        for kind in ("gate_up", "down"):
            weight = experts.get_parameter(f"{kind}_proj")
            name = f"model.layers.{layer}.mlp.experts.{kind}_lora_A"
            shape = (weight.shape[0], lora.lora_rank, weight.shape[2])
            drawn = [_draw(tensor, seed) for tensor in split_name(name, shape)]
            adapter = ExpertAdapter(torch.cat(drawn).view(shape), weight.shape[1], scaling)
            parametrize.register_parametrization(experts, f"{kind}_proj", adapter)


def _draw(tensor: StoredTensor, seed: int) -> Tensor:
    """First values of an expert's A matrix: PEFT's bounds, from the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = 1 / tensor.shape[-1] ** 0.5
    return torch.empty(tensor.numel).uniform_(-bound, bound, generator=generator)


def released_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's parameters by the names that they have without our adapters around them."""
    for name, parameter in model.named_parameters():
        layer, found, rest = name.partition(".parametrizations.")
        if found:
            kind, _, part = rest.partition("_proj.")
            part = "proj" if part == "original" else part.removeprefix("0.")
            name = f"{layer}.{kind}_{part}"
        yield name, parameter


def split_released(name: str, values: Tensor) -> Parts:
    """A whole parameter's values as the released tensors that it consists of."""
    tensors = split_name(name, tuple(values.shape))
    parts = values.detach().flatten().split([tensor.numel for tensor in tensors])
    return {
        (tensor.name, 0): part.numpy().copy() for tensor, part in zip(tensors, parts, strict=True)
    }


@dataclass(slots=True)
class SampleLoss:
    """Losses of some samples: their sum, and sums and weights by mode and span."""

    total: Tensor
    sums: dict[str, float]
    weights: dict[str, float]


def sum_losses(model: nn.Module, samples: list[Sample]) -> SampleLoss:
    """Weighted loss of the labels of each sample, run alone."""
    result = SampleLoss(torch.zeros((), dtype=torch.float64), {}, {})
    for sample in samples:
        ids = torch.from_numpy(sample.tokens.tokens.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0]
        losses = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        losses = losses * torch.from_numpy(sample.tokens.weights[1:]).double()
        result.total = result.total + losses.sum()
        for position, span in enumerate(sample.tokens.spans[1:].tolist()):
            if not span:
                continue
            groups = {MODES[sample.mode], PLURALS.get(SPANS[span], SPANS[span])}
            for group in ("loss", *(f"loss_{one}" for one in groups)):
                loss = losses[position].item()
                weight = float(sample.tokens.weights[1 + position])
                result.sums[group] = result.sums.get(group, 0.0) + loss
                result.weights[group] = result.weights.get(group, 0.0) + weight
    return result


class RouterTap:
    """Catches what the routers of a plain model give, to compute their losses from."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.caught: list[tuple[Tensor, Tensor]] = []
        if isinstance(model, PlainHyV3):
            return  # no such losses
        for name, module in model.named_modules():
            if name.endswith(".mlp.gate"):
                module.register_forward_hook(self._catch)

    def _catch(self, _: nn.Module, __: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _weights, experts = output
        self.caught.append((logits, experts))

    def loss(self, balance_coefficient: float, z_coefficient: float) -> Tensor:
        """Both losses of everything caught since the last call, mean over layers: a scalar."""
        if not self.caught:  # a dense model, or one of sigmoid scores
            return torch.zeros((), dtype=torch.float64)
        num_layers = len(self.model.model.layers)
        balance = z = torch.zeros((), dtype=torch.float64)
        for layer in range(num_layers):
            logits = torch.cat([caught[0] for caught in self.caught[layer::num_layers]])
            experts = torch.cat([caught[1] for caught in self.caught[layer::num_layers]])
            num_experts = logits.shape[1]
            counts = torch.bincount(experts.flatten(), minlength=num_experts).double()
            probability = logits.softmax(dim=-1).mean(dim=0)
            balance = balance + num_experts * (counts / counts.sum() * probability).sum()
            z = z + logits.logsumexp(dim=-1).square().mean()
        self.caught.clear()
        return (balance_coefficient * balance + z_coefficient * z) / num_layers


def train_reference(
    config: RunConfig, shape: ModelShape, steps: list[Step], num_groups: int
) -> Record:
    """Train on all micro-batches of each step.

    Args:
        config: of the case that is checked; what splits the model is not read.
        shape: of the model.
        steps: samples.
        num_groups: ranks of the case, or groups of them that share rows. It decides which
            micro-batches run at the same time, and so the balance loss, which is no sum over
            tokens; everything else is the same for any.
    """
    record = Record()
    with InFloat64():
        model = build_reference(config, shape)
        tap = RouterTap(model)
        optimizer = make_optimizer(model, config)
        record.start = kept_parameters(model)
        known = judge_steps(model, steps, config.preferences)
        tap.caught.clear()
        for step in steps:
            with parametrize.cached():
                loss, numbers = step_loss(model, tap, step, config, num_groups, known)
                loss.backward()
            record.numbers.append(numbers)
            record.gradients.append(trained_gradients(model))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            limit = config.optimizer.max_grad_norm or float("inf")
            record.grad_norms.append(float(nn.utils.clip_grad_norm_(trained, limit)))
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad(), parametrize.cached():
            _, numbers = step_loss(model, tap, steps[0], config, num_groups, known)
        record.numbers.append(numbers | {"router loss": 0.0})  # as in an evaluation
        record.end = kept_parameters(model)
    return record


def step_loss(
    model: nn.Module,
    tap: RouterTap,
    step: Step,
    config: RunConfig,
    num_groups: int,
    known: Known,
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of a step and router losses, with the numbers that a run would report."""
    if config.preferences.objective != "sft":  # whose cases have no router losses
        loss, numbers = preference_loss(model, step, config.preferences, known)
        tap.caught.clear()
        return loss, {"router loss": 0.0, **numbers}
    num_micro_steps = len(step) // num_groups
    router_loss = torch.zeros((), dtype=torch.float64)
    parts = []
    for micro_step in range(num_micro_steps):
        at_once = step[micro_step::num_micro_steps]
        parts += [sum_losses(model, samples or [FILLER]) for samples in at_once]
        terms = tap.loss(config.model.router_aux_loss_coef, config.model.router_z_loss_coef)
        router_loss = router_loss + terms / num_micro_steps
    sums = _add_up([part.sums for part in parts])
    weights = _add_up([part.weights for part in parts])
    means = {group: sums[group] / weights[group] for group in sums}
    total = torch.stack([part.total for part in parts]).sum() / weights["loss"]
    return total + router_loss, {"router loss": router_loss.item(), **means}


def _add_up(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """torch's own, whose steps the case's optimizer takes; only matrices decay."""
    settings = config.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    if find_optimizer(settings.optimizer).reference == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon)


def kept_parameters(model: nn.Module) -> Parts:
    """All weights by released name."""
    kept: dict[tuple[str, int], Any] = {}
    for name, parameter in released_parameters(model):
        kept |= split_released(name, parameter)
    return kept


def trained_gradients(model: nn.Module) -> Parts:
    """Gradients of what is trained, 0 where nothing reached a parameter."""
    found: dict[tuple[str, int], Any] = {}
    for name, parameter in released_parameters(model):
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found |= split_released(name, gradient)
    return found

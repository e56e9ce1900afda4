"""The parameters a rank meets: their names, sizes, how many ranks share each, which are trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hunyuan_train.config.adapters import adapted_modules
from hunyuan_train.config.freezing import is_frozen, trains_rows
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import LoraConfig, ModelConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import ModelParameter, layer_rows, model_parameters
from hunyuan_train.families.tensors import FUSED, Kind


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as a rank sees it, or the same one in several layers."""

    name: str  # Transformers' name; of layers that are alike, the first one's
    kind: Kind  # of an adapter, that of what it adapts
    in_layers: bool
    count: int  # layers that have it
    numel: int  # elements of one, whole; of split experts, those of this rank's experts
    num_partitions: int  # ranks between which stage 3 cuts it
    is_trained: bool
    is_vector: bool  # never decayed, and so in the other group (parallel/optimizer.py)

    @property
    def is_exact(self) -> bool:
        """A vector or a router: `lean` keeps its master weights in float32."""
        return self.is_vector or self.kind is Kind.ROUTER

    @property
    def partition(self) -> int:
        """Elements this rank keeps of one under stage 3; the last range is padded."""
        return -(-self.numel // self.num_partitions)

    @property
    def kept(self) -> int:
        """Elements this rank keeps of all of them under stage 3."""
        return self.count * self.partition

    @property
    def total(self) -> int:
        """Elements of all of them, before stage 3 cuts them."""
        return self.count * self.numel


def list_parameters(run: ResolvedRun) -> tuple[Parameter, ...]:
    """Every parameter of the model and of its adapters."""
    return _list(
        run.shape,
        run.config.model,
        run.config.lora,
        run.num_ranks,
        run.expert_size if run.splits_experts else 0,
    )


@lru_cache(maxsize=64)
def _list(
    shape: ModelShape, model: ModelConfig, lora: LoraConfig, num_ranks: int, expert_size: int
) -> tuple[Parameter, ...]:
    alike: dict[tuple[str, bool], list[ModelParameter]] = {}
    is_quantised = model.expert_weights != "bf16"  # no parameters then (planner/frozen_experts.py)
    for one in model_parameters(shape):
        if is_quantised and one.kind is Kind.EXPERT:
            continue
        alike.setdefault((one.name_in_layer, is_trained(one, model, lora)), []).append(one)
    parameters: list[Parameter] = []
    for (_, trained), members in alike.items():
        one = members[0]
        is_split = one.kind is Kind.EXPERT and expert_size > 0
        parameters += [
            Parameter(
                name=one.name,
                kind=one.kind,
                in_layers=one.layer is not None,
                count=len(members),
                numel=numel,
                num_partitions=num_ranks // expert_size if is_split else num_ranks,
                is_trained=trained,
                is_vector=len(one.shape) == 1,
            )
            for numel in local_sizes(one, expert_size if is_split else 0)
        ]
    return (*parameters, *list_adapters(shape, lora, num_ranks, expert_size))


def local_sizes(parameter: ModelParameter, expert_size: int) -> list[int]:
    """Elements of what a parameter becomes: split experts have gate and up apart (w1 and w3)."""
    if not expert_size:
        return [parameter.numel]
    parts = FUSED[parameter.name.rpartition(".")[2]]
    local = parameter.shape[0] // expert_size * (parameter.numel // parameter.shape[0])
    return [local // len(parts)] * len(parts)


def is_trained(parameter: ModelParameter, model: ModelConfig, lora: LoraConfig) -> bool:
    """Whether a parameter of the base model is trained, or some rows of it."""
    if trains_rows(parameter.kind, model):
        return True
    return not lora.use_lora and not is_frozen(parameter.name, parameter.kind, model)


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """A linear layer with an adapter, in all layers that have it."""

    name: str
    kind: Kind
    count: int
    inputs: int
    outputs: int


def list_adapters(
    shape: ModelShape, lora: LoraConfig, num_ranks: int, expert_size: int
) -> Iterator[Parameter]:
    """The two matrices of each adapter; DoRA adds a vector of magnitudes."""
    rank = lora.lora_rank
    for one in adapted_linears(shape, lora):
        sizes = {"lora_A": rank * one.inputs, "lora_B": one.outputs * rank}
        if lora.use_dora:
            sizes["lora_magnitude_vector"] = one.outputs
        for part, numel in sizes.items():
            yield Parameter(
                name=f"{one.name}.{part}",
                kind=one.kind,
                in_layers=True,
                count=one.count,
                numel=numel,
                num_partitions=num_ranks,
                is_trained=True,
                is_vector="vector" in part,
            )
    experts, ranks = shape.num_experts // max(expert_size, 1), num_ranks // max(expert_size, 1)
    for name, count, length in adapted_experts(shape, lora):
        yield Parameter(
            name=name,
            kind=Kind.EXPERT,
            in_layers=True,
            count=count,
            numel=experts * rank * length,
            num_partitions=ranks,
            is_trained=True,
            is_vector=False,
        )


def adapted_linears(shape: ModelShape, lora: LoraConfig) -> list[AdaptedLinear]:
    """The linear layers that get an adapter, routed experts apart."""
    found = []
    for module, kind in adapted_modules(lora, shape).items():
        if kind is not Kind.EXPERT:
            rows = layer_rows(shape, f"{module}.weight")
            outputs, inputs = rows[0].shape
            found.append(AdaptedLinear(module, kind, len(rows), inputs, outputs))
    return found


def adapted_experts(shape: ModelShape, lora: LoraConfig) -> Iterator[tuple[str, int, int]]:
    """Adapters of one expert: name, layers that have it, and elements for each rank of it."""
    for module, kind in adapted_modules(lora, shape).items():
        if kind is Kind.EXPERT:
            fused = {
                one: [p for p in model_parameters(shape) if p.name.endswith(one)] for one in FUSED
            }
            for name, members in fused.items():
                _, rows, columns = members[0].shape
                adapter = f"{module}.{name.removesuffix('_proj')}_lora"
                yield f"{adapter}_A", len(members), columns
                yield f"{adapter}_B", len(members), rows

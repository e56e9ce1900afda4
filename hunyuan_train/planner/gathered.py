"""Lines of the plan for weights that ZeRO-3 has gathered, by the moments of a step."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.activations import before_bytes, saved_bytes
from hunyuan_train.planner.component import Component, Phase
from hunyuan_train.planner.exchanges import weighs_inside
from hunyuan_train.planner.gathering import Gathered, Hook, Limits, walk_micro_step
from hunyuan_train.planner.layers import Model, Module, build_model
from hunyuan_train.planner.parameters import Parameter, list_parameters
from hunyuan_train.planner.states import large_parameters

SOURCE = "parameters in use or fetched ahead (partitioned_param_coordinator.py)"
NAMES = {  # of the lines, by when they hold
    Phase.PASSES: "gathered weights",
    Phase.FORWARD: "gathered, forward",
    Phase.LOSS: "gathered, loss",
    Phase.LATER_AGAIN: "gathered, layer again",
    Phase.LATER_ENTERED: "gathered, first gradients",
    Phase.LATER_BACKWARD: "gathered, layer backward",
    Phase.LATER_NORM: "gathered, last gradients",
    Phase.FIRST_AGAIN: "gathered, layer 1 again",
    Phase.FIRST_ENTERED: "gathered, layer 1, first",
    Phase.FIRST_BACKWARD: "gathered, layer 1 backward",
    Phase.FIRST_NORM: "gathered, layer 1, last",
}


def gathered_lines(run: ResolvedRun, *, imbalance: float) -> Iterator[Component]:
    """What is gathered, by the moments of a step.

    Args:
        run: what is trained.
        imbalance: rows that this rank's experts see over an equal share.
    """
    if run.stage < 3:
        return
    if run.shape.num_experts and not run.splits_experts:
        yield line(run, Phase.PASSES, gathered_elements(run))
        return
    levels = find_levels(describe_play(run))
    saved = saved_bytes(run, imbalance=imbalance) - before_bytes(run)
    freed = saved // run.element_bytes // run.shape.num_hidden_layers
    yield line(run, Phase.FORWARD, fullest(levels.forward, freed))
    yield line(run, Phase.LOSS, levels.loss)
    for elements, later, first in (
        (levels.again, Phase.LATER_AGAIN, Phase.FIRST_AGAIN),
        (levels.entered, Phase.LATER_ENTERED, Phase.FIRST_ENTERED),
        (levels.backward, Phase.LATER_BACKWARD, Phase.FIRST_BACKWARD),
        (levels.norm, Phase.LATER_NORM, Phase.FIRST_NORM),
    ):
        yield line(run, later, fullest(elements, freed))
        # What layers before the first that has experts have saved is still there.
        yield line(run, first, elements[0] + levels.num_before * freed)


def copied_elements(run: ResolvedRun) -> tuple[int, int]:
    """Elements that a micro-step copies out of buffers that weights share, forward and backward.

    What is fetched alone lies where it is used. Whole experts are taken for all copied, in both.
    """
    if run.stage < 3:
        return 0, 0
    if run.shape.num_experts and not run.splits_experts:
        number = sum(one.total for one in large_parameters(run) if one.in_layers)
        return number, number
    return find_levels(describe_play(run)).copied


def fullest(elements: tuple[int, ...], freed: int) -> int:
    """The most of all layers but the first of them, which has a moment of its own.

    Args:
        elements: gathered in each layer.
        freed: elements of activations that the backward of a layer frees. What is gathered in an
            earlier layer counts less by these, because there is more room then.
    """
    last = len(elements) - 1
    counted = [one - (last - index) * freed for index, one in enumerate(elements)]
    return max(counted[1:] or counted)


def line(run: ResolvedRun, phase: Phase, elements: int) -> Component:
    """A line of the plan."""
    return Component(NAMES[phase], elements * run.element_bytes, phase, SOURCE)


def gathered_elements(run: ResolvedRun) -> int:
    """Larger parameters at one time with whole experts: the engine's limit, or those of a layer."""
    large = large_parameters(run)
    if not large:
        return 0
    experts = sum(one.numel for one in large if one.kind is Kind.EXPERT)
    largest = max(experts, *(one.numel for one in large))
    limit = max(run.zero_number("stage3_max_live_parameters"), largest)
    return min(sum(one.total for one in large), limit)


@dataclass(frozen=True, slots=True)
class Levels:
    """Elements that are gathered where a step may be fullest, by layer that has experts.

    All layers of models without experts.
    """

    num_before: int  # layers before the first of these
    copied: tuple[int, int]  # elements taken out of buffers, forward and backward, in all layers
    forward: tuple[int, ...]  # among a layer's experts
    loss: int
    again: tuple[int, ...]  # its experts run a second time, in chunks all but the last one
    entered: tuple[int, ...]  # at the gradient of its experts' outputs
    backward: tuple[int, ...]  # from the gradient of the outputs' weighed sum to that of its input
    norm: tuple[int, ...]  # from there to the gradient of the sum before the MLP


@dataclass(frozen=True, slots=True)
class Play:
    """What decides over what is gathered."""

    shape: ModelShape
    parameters: tuple[Parameter, ...]  # all of them; see `number_partitions`
    persistent: int  # elements up to which a parameter stays gathered
    limits: Limits  # of the engine
    is_again: bool  # layers are recomputed
    num_chunks: int  # in which a layer's experts run
    is_shared_first: bool  # whether shared experts run before the routed ones


def describe_play(run: ResolvedRun) -> Play:
    """That of a run under stage 3 whose experts, if it has any, are split."""
    return Play(
        shape=run.shape,
        parameters=number_partitions(list_parameters(run)),
        persistent=run.zero_number("stage3_param_persistence_threshold"),
        limits=Limits(
            prefetched=run.zero_number("stage3_prefetch_bucket_size"),
            live=run.zero_number("stage3_max_live_parameters"),
            reuse=run.zero_number("stage3_max_reuse_distance"),
        ),
        is_again=bool(run.config.train.gradient_checkpointing),
        num_chunks=run.config.train.moe_chunks,
        is_shared_first=weighs_inside(run),
    )


def number_partitions(parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """Parameters whose partitions are 1, or else 2 and so on by rank of size.

    What is gathered depends on which of them are cut, and which alike, but not into how many parts.
    So it is played once for all numbers of machines.
    """
    sizes = sorted({1, *(one.num_partitions for one in parameters)})
    return tuple(
        replace(one, num_partitions=1 + sizes.index(one.num_partitions)) for one in parameters
    )


def play_micro_step(what: Play) -> tuple[Model, Gathered]:
    """The modules of a model, and what was gathered at each of them."""
    model = build_model(
        what.shape,
        what.parameters,
        persistent=what.persistent,
        num_chunks=what.num_chunks,
        is_shared_first=what.is_shared_first,
    )
    trace = tuple(walk_micro_step(model.root, is_again=what.is_again))
    played = Gathered(trace, what.limits, what.is_again)
    played.play()
    return model, played


@lru_cache(maxsize=64)
def find_levels(what: Play) -> Levels:
    """Play a micro-step, and look where it may be fullest."""
    model, played = play_micro_step(what)
    after, within = played.after, played.within
    places: defaultdict[tuple[Hook, Module], list[int]] = defaultdict(list)
    for index, event in enumerate(played.trace):
        places[event.hook, event.module].append(index)

    def at(hook: Hook, module: Module) -> int:
        return max((after[index] for index in places[hook, module]), default=0)

    def in_second_run(core: Module) -> int:
        """Not at the third run of a chunk, which is a part of its backward."""
        seen = places[Hook.ENTER_AGAIN, core][: what.num_chunks]
        return max((after[index] for index in seen), default=0)

    def while_entering(core: Module) -> int:
        starts = places[Hook.ENTER_BACKWARD, core]
        if core.children:  # of a dense MLP, until the backward of what goes down is done
            return max(after[starts[0] : places[Hook.LEAVE_BACKWARD, core.children[-1]][-1]])
        return max(within[index] for index in starts)

    def in_backward(core: Module) -> int:
        starts, stops = places[Hook.ENTER_BACKWARD, core], places[Hook.LEAVE_BACKWARD, core]
        if core.children:  # of a dense MLP, behind that
            starts = [index + 1 for index in places[Hook.LEAVE_BACKWARD, core.children[-1]]]
        return max(max(after[start - 1 : stop]) for start, stop in zip(starts, stops, strict=True))

    def behind(core: Module, norm: Module) -> int:
        start = places[Hook.LEAVE_BACKWARD, core][-1]
        return max(after[start : places[Hook.LEAVE_BACKWARD, norm][-1]])

    layers = [layer for layer in model.layers if layer.core.is_saved] or list(model.layers)
    cores = [layer.core for layer in layers]
    (start,), (stop,) = places[Hook.ENTER, model.head], places[Hook.LEAVE_BACKWARD, model.head]
    return Levels(
        num_before=model.layers.index(layers[0]),
        copied=(
            played.copied.get(Hook.ENTER, 0),
            sum(number for hook, number in played.copied.items() if hook is not Hook.ENTER),
        ),
        forward=tuple(at(Hook.ENTER, core) for core in cores),
        loss=max(after[start:stop]),
        again=tuple(map(in_second_run, cores)),
        entered=tuple(map(while_entering, cores)),
        backward=tuple(map(in_backward, cores)),
        norm=tuple(behind(layer.core, layer.norm) for layer in layers),
    )

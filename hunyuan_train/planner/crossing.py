"""Which weights and gradients cross from machine to machine.

What ranks keep in parts they gather and reduce in rings. Each GPU's link to the network carries its
share of them: of a parameter whose parts lie on n machines, a GPU sends n - 1 times its own part to
other machines, however many more ranks of its own machine have parts of it.
"""

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.exchanges import weighs_inside
from hunyuan_train.planner.parameters import Parameter, list_parameters

IN_CHUNKS = (Kind.ROUTER, Kind.EXPERT, Kind.SHARED_EXPERT)


def num_gathers(run: ResolvedRun, one: Parameter) -> int:
    """How often a parameter is gathered in an optimizer step; under stage 2 after its update.

    In a micro-step once forward, and once for a layer's second run and its backward. What is frozen
    is freed between these two, because the engine counts the second run as a use by the module
    whose backward comes first (partitioned_param_coordinator.py update_recompute_parameters). So it
    is gathered again there, by each chunk of experts. Where rows are weighed inside, backward of
    routed experts comes before the second run, which finds them there.
    """
    train = run.config.train
    if run.stage < 3:
        return 1
    is_freed = train.gradient_checkpointing and one.in_layers and not one.is_trained
    backward = train.moe_chunks if one.kind in IN_CHUNKS else 1
    if one.kind is Kind.EXPERT and weighs_inside(run):
        backward -= 1
    return train.gradient_accumulation_steps * (2 + (backward if is_freed else 0))


def crossing_weights(run: ResolvedRun) -> tuple[int, int]:
    """Bytes that one GPU sends to other machines in a step: of routed experts, and of the rest."""
    steps, size = run.config.train.gradient_accumulation_steps, run.element_bytes
    experts = rest = 0
    for one in list_parameters(run):
        passes = num_gathers(run, one) + (steps if one.is_trained else 0)
        num_machines = min(one.num_partitions, run.num_nodes)
        num_bytes = passes * one.kept * (num_machines - 1) * size
        if one.kind is Kind.EXPERT and run.splits_experts:
            experts += num_bytes
        else:
            rest += num_bytes
    return experts, rest

"""Which weights and gradients cross from machine to machine.

What ranks keep in parts they gather and reduce in rings. Each GPU's link to the network carries its
share of them: of a parameter whose parts lie on n machines, a GPU sends n - 1 times its own part to
other machines, however many more ranks of its own machine have parts of it.
"""

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.parameters import list_parameters


def crossing_weights(run: ResolvedRun) -> tuple[int, int]:
    """Bytes that one GPU sends to other machines in a step: of routed experts, and of the rest."""
    steps, size = run.config.train.gradient_accumulation_steps, run.element_bytes
    gathers = 2 * steps if run.stage == 3 else 1
    experts = rest = 0
    for one in list_parameters(run):
        passes = gathers + (steps if one.is_trained else 0)
        num_machines = min(one.num_partitions, run.num_nodes)
        num_bytes = passes * one.kept * (num_machines - 1) * size
        if one.kind is Kind.EXPERT and run.splits_experts:
            experts += num_bytes
        else:
            rest += num_bytes
    return experts, rest

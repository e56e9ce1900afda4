"""Whether ranks exchange tokens, and in which way."""

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.rules.engine_file import uses_deepep


def can_be_skewed(run: ResolvedRun) -> bool:
    """Whether other ranks' tokens come to this one, so that it may get more than an equal share."""
    return run.splits_experts and run.expert_size > 1


def weighs_inside(run: ResolvedRun) -> bool:
    """Whether rows are weighed before experts' last product (parallel/row_weights.py)."""
    return run.splits_experts and not uses_deepep(run)


def hides_exchanges(run: ResolvedRun) -> bool:
    """Whether shared experts are computed while tokens travel (parallel/expert_layer.py)."""
    return can_be_skewed(run) and weighs_inside(run)

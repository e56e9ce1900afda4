"""Which numbers a page draws together, and what they are called there."""

from dataclasses import dataclass
from typing import Any

from hunyuan_train.config.metric_names import explain_metric
from hunyuan_train.objectives.loss_groups import BY_MODE, BY_SPAN

# Numbers that name where a run is, or that tables show: no curves of their own.
NOT_DRAWN = (
    "time",
    "epoch",
    "tokens_seen",
    "samples_seen",
    "label_tokens",
    "restarts",
    "eval_answers",
    "eval_calls",
    "eval_call_accuracy/",
    "eval_loss/",  # a chart of their own
    "eval_perplexity/",
)


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart."""

    title: str
    series: dict[str, str]  # numbers of metrics.jsonl, and what each is called
    unit: str = ""
    planned: str = ""  # a number of the plan that is drawn, too


CHARTS = (
    Chart("Loss", {"loss": "training", "eval_loss": "held out"}),
    Chart("Loss by mode", {f"loss_{group}": group for group in BY_MODE}),
    Chart("Loss by span", {f"loss_{group}": group for group in BY_SPAN}),
    Chart(
        "Held-out loss by mode and span",
        {f"eval_loss_{group}": group for group in (*BY_MODE, *BY_SPAN)},
    ),
    Chart(
        "Answers to held-out questions",
        {
            "eval_valid_format": "well-formed",
            "eval_exact_match": "exact",
            "eval_set_f1": "set F1",
            "eval_mode_leak_fast": "fast that think",
            "eval_mode_leak_slow": "slow that do not",
        },
        unit="share",
    ),
    Chart(
        "Calls of held-out answers with tools",
        {
            "eval_call_accuracy": "right",
            "eval_call_exact": "exact",
            "eval_call_name": "names right",
            "eval_call_parse_errors": "not read as calls",
            "eval_call_undue": "undue",
            "eval_call_missed": "missed",
        },
        unit="share",
    ),
    Chart(
        "Right calls by how many are due",
        {f"eval_call_accuracy_{kind}": kind for kind in ("none", "one", "many")},
        unit="share",
    ),
    Chart(
        "Rewards of answers",
        {
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "rewards/margins": "margin",
            "eval_rewards/margins": "margin, held out",
        },
    ),
    Chart(
        "Pairs with the chosen answer ahead",
        {
            "rewards/accuracies": "training",
            "eval_rewards/accuracies": "held out",
            **{f"eval_rewards/accuracies_{mode}": f"{mode}, held out" for mode in BY_MODE},
        },
        unit="share",
    ),
    Chart(
        "Log-probabilities of answers",
        {
            "logps/chosen": "chosen",
            "logps/rejected": "rejected",
            "eval_logps/chosen": "chosen, held out",
            "eval_logps/rejected": "rejected, held out",
        },
    ),
    Chart("Distance to the reference (KL)", {"kl": "training", "eval_kl": "held out"}),
    Chart("Learning rate", {"learning_rate": "learning rate"}),
    Chart("Gradient norm, before clipping", {"grad_norm": "norm"}),
    Chart(
        "Tokens per second",
        {"tokens_per_second": "all", "tokens_per_second_per_gpu": "per process"},
        planned="tokens_per_second",
    ),
    Chart("Share of the GPU's peak (MFU)", {"mfu": "MFU"}, unit="share"),
    Chart("TFLOP/s per process", {"tflops_per_gpu": "model operations"}),
    Chart(
        "Memory",
        {
            "memory_gib": "fullest process, peak",
            "gpu_memory_reserved_gib": "held by torch",
            "host_memory_gib": "host",
        },
        unit="GiB",
        planned="memory_gib",
    ),
    Chart(
        "Seconds of a step",
        {
            "step_seconds": "whole",
            "seconds_data": "data",
            "seconds_forward": "forward",
            "seconds_backward": "backward",
            "seconds_optimizer": "optimizer",
            "seconds_communication": "collectives, within these",
        },
        unit="s",
    ),
    Chart(
        "Seconds of saving",
        {
            "checkpoint_seconds": "last save, beside training",
            "checkpoint_stall_seconds": "training waited, in all",
        },
        unit="s",
    ),
    Chart(
        "Evenness of the experts' load (entropy)",
        {"router_entropy": "mean of layers", "router_entropy_min": "lowest layer"},
    ),
    Chart("Busiest expert beyond an equal share", {"expert_imbalance": "largest violation"}),
    Chart("Dead experts, of all layers", {"dead_experts": "dead"}),
    Chart("Routing's distance from the base model", {"router_drift": "largest drift"}),
)


def list_charts(names: list[str]) -> list[dict[str, Any]]:
    """The charts for the numbers that there are; what no chart names gets one of its own.

    Args:
        names: of all runs on the page.
    """
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    for chart in CHARTS:
        series = {name: label for name, label in chart.series.items() if name in names}
        known |= chart.series.keys()
        if series:
            found.append(_to_json(chart.title, series, chart))
    files = {name: name.partition("/")[2] for name in names if name.startswith("eval_loss/")}
    if files:
        title = "Held-out loss by file"
        found.append(_to_json(title, files, Chart(title, {})))
    rest = [one for one in names if one not in known and not one.startswith(NOT_DRAWN)]
    found += [
        _to_json(name, {name: name}, Chart(name, {})) | {"is_extra": True} for name in sorted(rest)
    ]
    return found


def _to_json(title: str, series: dict[str, str], chart: Chart) -> dict[str, Any]:
    names = [
        {"name": name, "label": label, "meaning": explain_metric(name)}
        for name, label in series.items()
    ]
    return {"title": title, "series": names, "unit": chart.unit, "planned": chart.planned}

"""What each number of metrics.jsonl means: the one source of `--help`, the live page and the docs.

A name may begin with `eval_` (the same, of held-out data) and may end with a mode (`_fast`,
`_slow`), or, of losses and perplexities, with a part of an answer (`_think`, `_answer`,
`_markers`) or `_text`. Only the rest of a name has an entry here.
"""

from typing import Final

# Of a logged step, in the order in which a reader meets them.
METRICS: Final = {
    "loss": "mean cross entropy of the label tokens, over all processes, in nats",
    "perplexity": "e to the power of the loss",
    "router_loss": "load-balancing loss and router z-loss, times their weights (0: both are off)",
    "learning_rate": "learning rate of this step",
    "grad_norm": "norm of the whole gradient before it is clipped to max_grad_norm",
    "weights_moved": "only with lean: share of the bfloat16 weights that updates changed since the "
    "last logged step. 0 means that every update was rounded away, and nothing is learned",
    "label_tokens": "tokens of the step that carry loss, over all processes",
    "tokens_seen": "tokens trained on so far. With a file's name after it: those of that file",
    "samples_seen": "samples trained on so far, of one file",
    "epoch": "passes over the data so far",
    "restarts": "how often the run was started again from a checkpoint",
    "step_seconds": "seconds of one optimizer step, the mean since the last logged one",
    "tokens_per_second": "tokens per second, of all processes together",
    "tokens_per_second_per_gpu": "tokens per second of one process",
    "tflops_per_gpu": "model FLOPs per second of one process, in 10^12. What gradient "
    "checkpointing recomputes does not count",
    "mfu": "model FLOPs utilisation: tflops_per_gpu as a share of the GPU's peak",
    "packing_efficiency": "share of the positions in packed rows that hold a token",
    "seconds_data": "seconds of a step spent waiting for data",
    "seconds_forward": "seconds of a step in the forward pass",
    "seconds_backward": "seconds of a step in the backward pass",
    "seconds_optimizer": "seconds of a step in the update of the weights",
    "seconds_communication": "seconds of a step in collective operations (part of the other times)",
    "checkpoint_seconds": "seconds of the last save, from its start until it was complete. "
    "Training continues meanwhile",
    "checkpoint_stall_seconds": "seconds that training has waited for saves, in total",
    "memory_gib": "peak memory of the fullest process, in GiB: on a GPU what tensors took",
    "gpu_memory_reserved_gib": "memory that torch's allocator holds on a GPU, in GiB",
    "host_memory_gib": "resident host memory of a process, in GiB",
    "host_memory_used": "share of the machine's host memory that is in use",
    "expert_imbalance": "MaxVio: load of the busiest expert beyond an equal share. 0 is even, 1 is "
    "twice as much",
    "router_entropy": "entropy of the experts' load, mean of the layers (1: all get the same)",
    "router_entropy_min": "the same for the layer with the lowest entropy",
    "dead_experts": "experts that get nearly no tokens, counted over all layers",
    "router_drift": "how far routing is from the base model's: Jensen-Shannon divergence, 0 to 1, "
    "of the layer with the largest one",
    "answers": "questions that the model answered",
    "valid_format": "share of answers that are well-formed",
    "exact_match": "share of answers that equal the reference",
    "call_accuracy": "share of answers to prompts with tools whose calls match the reference: the "
    "same names, and arguments equal by type and value. If the reference has no call, the answer "
    "must have none",
    "call_exact": "the same, with arguments that are equal as JSON",
    "call_name": "share of these answers whose calls have the right names, whatever the arguments",
    "call_parse_errors": "share of these answers with a call that no server can parse",
    "call_undue": "share of the prompts that need no call, but got one",
    "call_missed": "share of the prompts that need a call, but got none",
    "call_accuracy_none": "call_accuracy of prompts that need no call",
    "call_accuracy_one": "call_accuracy of prompts that need one call",
    "call_accuracy_many": "call_accuracy of prompts that need several calls",
    "set_f1": "F1 of answers as sets of items, separated by commas, semicolons or newlines",
    "mode_leak": "share of answers in the wrong mode: fast ones that think, slow ones that do not",
    "needles": "needle in a haystack: share of the facts found in texts of so many tokens",
    "rewards/chosen": "implicit reward of chosen answers: beta times log-ratio to the reference",
    "rewards/rejected": "the same for rejected answers",
    "rewards/margins": "reward of the chosen answer minus that of the rejected one",
    "rewards/accuracies": "share of pairs whose chosen answer has the higher reward",
    "logps/chosen": "log-probability of chosen answers, summed over their label tokens",
    "logps/rejected": "the same for rejected answers",
    "lengths/chosen": "label tokens of a chosen answer",
    "lengths/rejected": "label tokens of a rejected answer",
    "kl": "estimated distance of the model from the reference (Kullback-Leibler)",
}
# Words of the line that a logged step prints, and the number that each shows.
ON_SCREEN: Final = {
    "loss": "loss",
    "lr": "learning_rate",
    "norm": "grad_norm",
    "tok/s": "tokens_per_second",
    "GiB": "memory_gib",
    "skew": "expert_imbalance",
    "moved": "weights_moved",
}
MODES: Final = {"fast": "answers without thinking", "slow": "answers with thoughts"}
SPANS: Final = {
    "think": "the thoughts of answers",
    "answer": "the answers after the thoughts",
    "markers": "the tags around thoughts and answers",
    "text": "documents of plain text",
}


def explain_metric(name: str) -> str:
    """What a number of metrics.jsonl means, in a sentence; empty where no entry tells."""
    rest = name.removeprefix("eval_")
    parts = ["held-out data"] if rest != name else []
    for ending, of in (MODES | SPANS).items():
        if rest not in METRICS and rest.endswith(f"_{ending}"):
            rest = rest.removesuffix(f"_{ending}")
            parts.append(of)
    if rest not in METRICS:
        rest = next((one for one in ("needles", "samples_seen", "tokens_seen") if one in rest), "")
    meaning = METRICS.get(rest, "")
    return f"{meaning} (of {', '.join(parts)})" if meaning and parts else meaning

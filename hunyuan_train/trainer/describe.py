"""A step and an evaluation in a line each, for people."""

from hunyuan_train.json_lines import Numbers


def describe_step(numbers: Numbers, step: int, total_steps: int) -> str:
    """What a step gave, in 100 columns; skew is the busiest expert beyond an equal share."""
    parts = [
        f"step {step}/{total_steps}",
        f"loss {numbers['loss']:.3f}",
        f"lr {numbers['learning_rate']:.1e}",
        f"norm {numbers['grad_norm']:.3g}",
        f"{numbers['tokens_per_second']:.0f} tok/s",
        f"{numbers['memory_gib']:.1f} GiB",
    ]
    rest = {"expert_imbalance": "skew {:.1f}", "weights_moved": "moved {:.0%}"}
    parts += [form.format(numbers[name]) for name, form in rest.items() if name in numbers]
    return "  ".join(parts)


def describe_evaluation(numbers: Numbers) -> str:
    """What an evaluation gave, in a line."""
    parts = [f"eval loss {numbers['eval_loss']:.4f}"]
    if "eval_rewards/accuracies" in numbers:
        parts += [
            f"{numbers['eval_rewards/accuracies']:.0%} of pairs right",
            f"margin {numbers['eval_rewards/margins']:.3f}",
        ]
    if "eval_answers" in numbers:
        parts += [
            f"of {numbers['eval_answers']} answers",
            f"{numbers['eval_valid_format']:.0%} well-formed",
            f"{numbers['eval_exact_match']:.0%} exact",
            f"set F1 {numbers['eval_set_f1']:.2f}",
        ]
    by_file = {name.partition("/")[2]: name for name in numbers if name.startswith("eval_loss/")}
    if by_file:
        losses = ", ".join(f"{file} {numbers[name]:.4f}" for file, name in by_file.items())
        parts.append(f"({losses})")
    if "eval_calls" in numbers:
        parts.append(f"{numbers['eval_call_accuracy']:.0%} of {numbers['eval_calls']} call right")
    return "  ".join(parts)

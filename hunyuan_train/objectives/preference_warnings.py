"""What the figures of a preference run say of it, in words."""

from collections.abc import Mapping, Sequence

FALL = 0.05  # nats a token by which the log-probability of an answer has fallen to be worth a word
EXPLAINED = 0.8  # share of the margin that length alone makes up


def find_warnings(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Remarks on a run's figures; none where there are no preferences.

    Held-out pairs are looked at, which are the same at every evaluation: those of a step differ
    from those of another by more than training moves them.

    Args:
        rows: numbers by the names of metrics.jsonl, in the order of steps.
    """
    evaluations = [row for row in rows if row.get("eval_logps/chosen") is not None]
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    return [one for one in (_both_fall(first, last), _length_explains(last)) if one]


def _both_fall(first: Mapping[str, float | None], last: Mapping[str, float | None]) -> str:
    falls = {}
    for side in ("chosen", "rejected"):
        before, now = first.get(f"eval_logps/{side}"), last.get(f"eval_logps/{side}")
        length = last.get(f"eval_lengths/{side}")
        if before is None or now is None or not length:
            return ""
        falls[side] = (before - now) / length
    if min(falls.values()) < FALL:
        return ""
    return (
        f"the log-probabilities of both sides have fallen, by {falls['chosen']:.2f} (chosen) and "
        f"{falls['rejected']:.2f} (rejected) nats a token: the model unlearns both answers and "
        "moves to others; raise beta or rpo_alpha, or lower the learning rate"
    )


def _length_explains(last: Mapping[str, float | None]) -> str:
    names = ("rewards/chosen", "rewards/rejected", "lengths/chosen", "lengths/rejected")
    values = [last.get(f"eval_{name}") for name in names]
    if any(value is None for value in values):
        return ""
    chosen, rejected, chosen_length, rejected_length = (float(one or 0) for one in values)
    margin, num_tokens = chosen - rejected, chosen_length + rejected_length
    if margin <= 0 or not num_tokens:
        return ""
    explained = (chosen + rejected) / num_tokens * (chosen_length - rejected_length)
    if explained < EXPLAINED * margin:
        return ""
    return (
        f"{min(explained / margin, 1):.0%} of the margin is what length alone makes: every token "
        f"gained as much on both sides, and chosen answers have {chosen_length:.0f} of them, "
        f"rejected {rejected_length:.0f}; pairs of one length tell whether more was learned"
    )

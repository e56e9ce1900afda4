"""How far a case's training is from the reference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from hunyuan_train.selftest.record import Floats, Parts, Record

# A tensor whose largest value is this much smaller than the largest of all is compared with that.
FLOOR = 1e-3
# Numbers that jump where bfloat16 rounds: a margin just below 0, or just above.
ROUNDED_AWAY = ("rewards/accuracies",)


@dataclass(frozen=True, slots=True)
class Errors:
    """Largest relative errors over all steps, ranks and tensors."""

    loss: float  # of the mean loss, of each mode and span, of the routers, of an evaluation
    gradients: float  # before clipping, relative to the largest value of the tensor
    clip: float  # of the clip coefficient
    weights: float  # after the last step, relative to the largest way a value of the tensor went

    def over(self, tolerance: "Errors") -> list[str]:
        """What is out of tolerance; NaN is."""
        mine, allowed = asdict(self), asdict(tolerance)
        return [field.name for field in fields(self) if not mine[field.name] <= allowed[field.name]]


def compare(
    reference: Record, ranks: Sequence[Record], *, max_grad_norm: float, is_bf16: bool = False
) -> Errors:
    """Compare every number of every rank with the reference.

    Args:
        reference: of the plain model.
        ranks: what each rank keeps.
        max_grad_norm: what gradients are clipped to; 0: they are not.
        is_bf16: gradients and weights are compared as wholes (root mean square): of the many values
            that bfloat16 rounds, the worst says nothing.

    Raises:
        ValueError: the ranks together keep other tensors than the reference, or not all of each.
    """
    moved = {key: reference.end[key] - reference.start[key] for key in reference.end}
    error = _whole_error if is_bf16 else _worst_error
    weights = [error(reference.end, [rank.end for rank in ranks], moved)]
    gradients = [
        error(expected, [rank.gradients[step] for rank in ranks], expected)
        for step, expected in enumerate(reference.gradients)
    ]
    left_out = ROUNDED_AWAY if is_bf16 else ()
    losses = [
        _worst_number(expected, rank.numbers[step], left_out=left_out)
        for rank in ranks
        for step, expected in enumerate(reference.numbers)
    ]
    clips = [
        abs(_coefficient(norm, max_grad_norm) / _coefficient(expected, max_grad_norm) - 1)
        for rank in ranks
        for norm, expected in zip(rank.grad_norms, reference.grad_norms, strict=True)
    ]
    return Errors(
        loss=_largest(losses),
        gradients=_largest(gradients),
        clip=_largest(clips),
        weights=_largest(weights),
    )


def _coefficient(norm: float, max_grad_norm: float) -> float:
    """What gradients are multiplied by; the norm itself, where nothing is clipped."""
    if not max_grad_norm:
        return norm
    return min(1.0, max_grad_norm / (norm + 1e-6))


def _worst_number(
    expected: dict[str, float], found: dict[str, float], *, left_out: tuple[str, ...]
) -> float:
    if expected.keys() != found.keys():
        return np.inf
    errors = [
        abs(found[name] - value) / max(abs(value), 1.0)
        for name, value in expected.items()
        if not name.startswith(left_out)
    ]
    return _largest(errors)


def _scales(tensors: Parts) -> dict[str, float]:
    """The largest value of each tensor, no smaller than a share of the largest of all."""
    largest = {name: float(np.abs(values).max()) for (name, _), values in tensors.items()}
    floor = FLOOR * max(largest.values())
    return {name: max(value, floor) for name, value in largest.items()}


def _worst_error(expected: Parts, ranks: Sequence[Parts], measures: Parts) -> float:
    """The worst value, relative to the largest that its tensor has among the measures."""
    scales = _scales(measures)
    differences = _differences(expected, ranks)
    return _largest([float(np.abs(part).max()) / scales[name] for name, part in differences])


def _whole_error(expected: Parts, ranks: Sequence[Parts], measures: Parts) -> float:
    """All values together, relative to all measures, by their squares."""
    squares = sum(float(np.square(part).sum()) for _, part in _differences(expected, ranks))
    return float((squares / sum(float(np.square(one).sum()) for one in measures.values())) ** 0.5)


def _differences(expected: Parts, ranks: Sequence[Parts]) -> list[tuple[str, Floats]]:
    """What each part that a rank keeps is off by, with the name of its tensor."""
    covered = {name: np.zeros(len(values), bool) for (name, _), values in expected.items()}
    differences: list[tuple[str, Floats]] = []
    for parts in ranks:
        for (name, start), values in parts.items():
            if not len(values):
                continue
            if name not in covered:
                raise ValueError(f"a rank has {name}, which the plain model has not")
            stop = start + len(values)
            covered[name][start:stop] = True
            differences.append((name, values - expected[name, 0][start:stop]))
    missing = [name for name, mask in covered.items() if not mask.all()]
    if missing:
        raise ValueError(f"no rank keeps all of {len(missing)} tensors, such as {missing[0]}")
    return differences


def _largest(errors: Sequence[float]) -> float:
    """The largest of some errors, NaN if one of them is."""
    return float(np.max(errors)) if len(errors) else 0.0

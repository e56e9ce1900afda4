"""What quantising lost: the same dialogues through both models, teacher-forced, layer by layer.

Three numbers by mode and span on held-out dialogues: perplexity, KL divergence from the model as it
was, and how often the likeliest token is still the same one. And one on what was trained: the gain
in log-probability that fine-tuning gave the answers, and how much of it is still there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch, make_batch
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import SPAN_ANSWER, SPAN_THINK
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.layer_stream import LayerStream, Rounding, make_table
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.progress import show_progress

MEMORY_BYTES = 2**30  # of hidden states; what is more lies in a file
TOKENS_PER_ROW = 4096  # where dialogues are shorter: several lie in a row, kept apart
LOGITS_BYTES = 2**26  # of one model, compared at once
SPANS = {"think": SPAN_THINK, "answer": SPAN_ANSWER}
# Of the mean gain of a trained token, in nats: less is no gain whose survival could be measured.
SMALLEST_GAIN = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Dialogues to be computed, several a row, and their labels: N of them in all."""

    batches: list[Batch]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(batch.input_ids) for batch in self.batches)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[N], the tokens that are asked for."""
        labels = np.concatenate([batch.labels for batch in self.batches])
        return labels[labels >= 0]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """[N], where in all tokens they are asked for."""
        return np.flatnonzero(np.concatenate([batch.labels for batch in self.batches]) >= 0)

    def masks(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which labels belong to each mode and span: [N] each; those that have some."""
        modes = np.concatenate(
            [np.repeat(one.modes, np.diff(one.cu_seqlens)) for one in self.batches]
        )[self.positions]
        spans = np.concatenate([one.spans for one in self.batches])[self.positions]
        groups = {"all": np.ones(len(modes), bool)}
        for mode, (span, number) in product(MODES, SPANS.items()):
            groups[f"{mode} {span}"] = (modes == MODES.index(mode)) & (spans == number)
        return {name: mask for name, mask in groups.items() if mask.any()}


@dataclass(frozen=True, slots=True, eq=False)
class LabelScores:
    """What two models make of N labels."""

    before: Tensor  # [N], log-probability of the label, float32
    after: Tensor
    divergence: Tensor  # [N], KL(before || after) of all next tokens, in nats
    is_same: Tensor  # [N], whether the likeliest token is the same

    def part(self, labels: slice) -> "LabelScores":
        """Those of some labels."""
        values = (self.before, self.after, self.divergence, self.is_same)
        return LabelScores(*(value[labels] for value in values))


def choose_rows(dataset: Dataset, number: int) -> Rows:
    """Samples of every mode, as many of each where there are so many, spread over the file."""
    by_mode = [np.flatnonzero(dataset.samples["mode"] == mode) for mode in range(len(MODES))]
    by_mode = sorted((samples for samples in by_mode if len(samples)), key=len)
    chosen: list[int] = []
    for index, samples in enumerate(by_mode):
        share = min(len(samples), (number - len(chosen)) // (len(by_mode) - index))
        chosen += samples[np.arange(share) * len(samples) // max(1, share)].tolist()
    rows: list[list[int]] = []
    room = 0
    chosen.sort()
    for sample, length in zip(
        chosen, dataset.lengths_of(np.array(chosen, np.int64)).tolist(), strict=True
    ):
        room -= length
        if room < 0:
            rows.append([])
            room = TOKENS_PER_ROW - length
        rows[-1].append(sample)
    return Rows([make_batch(dataset, [np.array(row)]) for row in rows])


def final_states(
    shape: ModelShape,
    source: WeightSource,
    rows: Rows,
    *,
    title: str,
    rounding: Rounding | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Let rows through a model.

    Args:
        shape: of the model.
        source: of its weights.
        rows: at least one.
        title: for the progress.
        rounding: of what goes into compressed projections, where a server rounds that.
        device: to compute on.
        scratch: where hidden states that are too many for memory may lie meanwhile.

    Returns:
        what goes into the output layer at each label: [N, hidden], float32; and the output layer's
        weight, [vocabulary, hidden].
    """
    stream = LayerStream(shape, source, device=device, rounding=rounding)
    size = rows.num_tokens * shape.hidden_size * 4
    with TemporaryDirectory(dir=scratch, prefix=".hidden-") as folder:
        file = Path(folder, "states") if size > MEMORY_BYTES else None
        hidden_ND = make_table(rows.num_tokens, shape.hidden_size, file)
        stream.embed(rows.batches, hidden_ND)
        with show_progress(title, shape.num_hidden_layers * size) as advance:
            for _ in stream.layers():
                stream.run_layer(rows.batches, hidden_ND, hidden_ND)
                advance(size)
        return stream.finish(hidden_ND[torch.from_numpy(rows.positions)]), stream.load_head()


def compare_states(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], labels: npt.NDArray[np.int64]
) -> LabelScores:
    """Log-probabilities of two models, from what `final_states` gives of each."""
    row_bytes = 4 * len(before[1])
    step = max(1, LOGITS_BYTES // row_bytes)
    parts = []
    with show_progress("comparing predictions", len(labels) * row_bytes) as advance:
        for start in range(0, len(labels), step):
            old, new = (
                (states[start : start + step].to(head.device) @ head.T).log_softmax(dim=-1)
                for states, head in (before, after)
            )
            wanted = torch.from_numpy(labels[start : start + step]).to(old.device)[:, None]
            divergence = (old.exp() * (old - new)).sum(dim=-1)
            same = old.argmax(dim=-1) == new.argmax(dim=-1)
            values = (old.gather(1, wanted)[:, 0], new.gather(1, wanted)[:, 0], divergence, same)
            parts.append([value.cpu() for value in values])
            advance(len(old) * row_bytes)
    return LabelScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def summarize_loss(scores: LabelScores, rows: Rows) -> dict[str, dict[str, float]]:
    """The numbers of each group of labels, by its name."""
    numbers = {}
    for name, mask in rows.masks().items():
        inside = torch.from_numpy(mask)
        numbers[name] = {
            "tokens": int(mask.sum()),
            "perplexity_before": float((-scores.before[inside].double().mean()).exp()),
            "perplexity_after": float((-scores.after[inside].double().mean()).exp()),
            "kl_divergence": float(scores.divergence[inside].double().mean()),
            "same_argmax": float(scores.is_same[inside].double().mean()),
        }
    return numbers


def summarize_survival(
    base: Tensor, tuned: Tensor, quantized: Tensor, rows: Rows
) -> dict[str, dict[str, float | None]]:
    """How much of what fine-tuning gained on trained tokens survives, by mode and span.

    Args:
        base: [N], log-probability of each trained token under the model before fine-tuning.
        tuned: after it.
        quantized: after quantising that.
        rows: that the tokens are of.

    Returns:
        `gain` in nats a token, and `survives`, its share that is left; None where fine-tuning
        gained too little to tell.
    """
    numbers: dict[str, dict[str, float | None]] = {}
    for name, mask in rows.masks().items():
        inside = torch.from_numpy(mask)
        means = [float(one[inside].double().mean()) for one in (base, tuned, quantized)]
        gain, left = means[1] - means[0], means[2] - means[0]
        survives = None if gain <= SMALLEST_GAIN else left / gain  # NaN where a model gives it
        numbers[name] = {"tokens": int(mask.sum()), "gain": gain, "survives": survives}
    return numbers


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other, so that each model is read once for all of them."""
    return Rows([batch for part in parts for batch in part.batches])

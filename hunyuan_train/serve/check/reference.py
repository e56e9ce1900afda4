"""What the model itself says of a server's answers: our own reading of the folder, in float32.

Answers are not generated again. Each is put behind its prompt and read once, which gives the
log-probabilities of all its tokens; so a near-tie, or a difference in rounding, cannot lead the two
apart. A model comes layer by layer from its disk and takes the memory of one layer, whatever its
size. An adapter is put on its whole base by PEFT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.compressed_weights import open_model
from hunyuan_train.model.layer_stream import LayerStream, make_table
from hunyuan_train.serve.adapter import put_adapter
from hunyuan_train.serve.base_model import load_base


@dataclass(frozen=True, slots=True)
class AskedText:
    """A prompt and the answer that a server gave to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Log-probabilities, [answer tokens, vocabulary] float32 for each text."""

    logprobs: list[Tensor]
    base_logprobs: list[Tensor] | None  # without the adapter, where there is one


def score(
    folder: Path, base: Path | None, texts: Sequence[AskedText], tell: Callable[[str], None]
) -> Reference:
    """Read every answer behind its prompt.

    Args:
        folder: of a model, or of an adapter.
        base: of the adapter's base model; None for a model.
        texts: with answers of one token or more.
        tell: told how far the work is.
    """
    if base is None:
        return Reference(score_model(folder, texts, tell), None)
    return score_adapter(folder, base, texts, tell)


@torch.no_grad()
def score_model(
    folder: Path, texts: Sequence[AskedText], tell: Callable[[str], None]
) -> list[Tensor]:
    """Read them through a model, one layer in memory."""
    shape, source, _ = open_model(folder)
    stream = LayerStream(shape, source, device="cuda" if torch.cuda.is_available() else "cpu")
    batches = [as_batch((*one.prompt, *one.answer[:-1])) for one in texts]
    hidden = make_table(sum(len(one.input_ids) for one in batches), shape.hidden_size)
    stream.embed(batches, hidden)
    for number, _ in stream.layers():
        tell(f"layer {number + 1} of {shape.num_hidden_layers}")
        stream.run_layer(batches, hidden, hidden)
    head = stream.load_head()
    scored, end = [], 0
    for one, batch in zip(texts, batches, strict=True):
        end += len(batch.input_ids)
        last = stream.finish(hidden[end - len(one.answer) : end]).to(head.device)
        scored.append((last @ head.T).log_softmax(-1).cpu())
    return scored


@torch.no_grad()
def score_adapter(
    folder: Path, base: Path, texts: Sequence[AskedText], tell: Callable[[str], None]
) -> Reference:
    """Read them through a base model with an adapter, and without it."""
    shape = resolve_base(str(base.absolute()))
    model = load_base(base, shape, adapter=folder, dtype=torch.float32)
    adapted: PeftModel = put_adapter(model, folder)
    tuned, plain = [], []
    for number, one in enumerate(texts):
        tell(f"answer {number + 1} of {len(texts)}")
        tuned.append(_read(adapted, one))
        with adapted.disable_adapter():
            plain.append(_read(adapted, one))
    return Reference(tuned, plain)


def _read(model: PeftModel, one: AskedText) -> Tensor:
    ids = torch.tensor([[*one.prompt, *one.answer[:-1]]], device=next(model.parameters()).device)
    output = model(input_ids=ids, use_cache=False, logits_to_keep=len(one.answer))
    scores: Tensor = output.logits[0].float().log_softmax(-1).cpu()
    return scores


def as_batch(ids: Sequence[int]) -> Batch:
    """One document, of which nothing is taught."""
    num = len(ids)
    return Batch(
        input_ids=np.asarray(ids, np.int64),
        position_ids=np.arange(num),
        labels=np.full(num, -100, np.int64),
        loss_weights=np.zeros(num, np.float32),
        spans=np.zeros(num, np.uint8),
        modes=np.zeros(1, np.uint8),
        cu_seqlens=np.asarray([0, num], np.int32),
        sample_ids=np.zeros(1, np.int64),
    )

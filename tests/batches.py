"""Random batches of uneven documents, and the plain training they are compared with."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import HunYuanMoEV1ForCausalLM

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.selftest import reference

# Two layers show all that more would: what differs from layer to layer, and what lies between two.
SHAPE = replace(TINY, vocab_size=512, num_hidden_layers=2, num_attention_heads=8, head_dim=16)
WEIGHTS = SeededWeights(seed=1, standard_deviation=SHAPE.initializer_range)


def make_batch(generator: np.random.Generator, lengths: list[int]) -> Batch:
    """One row of random documents; the last two thirds of each carry loss."""
    documents = [generator.integers(0, SHAPE.vocab_size, length) for length in lengths]
    return batch_of(documents, [length // 3 for length in lengths])


def batch_of(documents: list[np.ndarray], prompt_lengths: list[int]) -> Batch:
    """One row of documents; what is behind the prompt in each carries loss."""
    lengths = [len(document) for document in documents]
    labels = []
    for document, prompt_length in zip(documents, prompt_lengths, strict=True):
        shifted = np.append(document[1:], -100)
        shifted[:prompt_length] = -100
        labels.append(shifted)
    label_row = np.concatenate(labels).astype(np.int64)
    return Batch(
        input_ids=np.concatenate(documents).astype(np.int64),
        position_ids=np.concatenate([np.arange(length) for length in lengths]).astype(np.int64),
        labels=label_row,
        loss_weights=(label_row >= 0).astype(np.float32),
        spans=(label_row >= 0).astype(np.uint8),
        modes=np.zeros(len(lengths), dtype=np.uint8),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        sample_ids=np.arange(len(lengths)),
    )


def empty_batch() -> Batch:
    """What a rank gets when there is nothing left for it: one token without loss."""
    return make_batch(np.random.default_rng(0), [1])


def global_batch(step: int, num_batches: int) -> list[Batch]:
    """All micro-batches of one optimizer step; token counts differ from batch to batch."""
    generator = np.random.default_rng(step)
    return [
        make_batch(generator, [int(length) for length in generator.integers(4, 40, size=3)])
        for _ in range(num_batches)
    ]


def plain_model() -> HunYuanMoEV1ForCausalLM:
    """Transformers' own model with the test weights, no engine anywhere."""
    return reference.plain_model(SHAPE, WEIGHTS, experts="grouped_mm")


def plain_loss(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Mean loss over the label tokens of all batches, each document run alone."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            logits = model(input_ids=torch.from_numpy(batch.input_ids[start:stop])[None]).logits[0]
            labels = torch.from_numpy(batch.labels[start:stop])
            total = total + nn.functional.cross_entropy(logits, labels, reduction="sum")
    return total / sum(float(batch.loss_weights.sum()) for batch in batches)


def released_state(model: nn.Module) -> dict[str, Tensor]:
    """A plain model's weights by released names."""
    kept = reference.kept_parameters(model)
    return {name: torch.from_numpy(values) for (name, _), values in kept.items()}

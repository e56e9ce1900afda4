"""A small model that has learnt its answers by heart, as a folder that anything loads."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.export.check import load_source
from hunyuan_train.families.grammar.dialogue import Dialogue
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import RANK_FILE
from hunyuan_train.families.grammar.template_files import CONFIG, TEMPLATE
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.grammar.tokenizer_json import FILE
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.released import SHAPE

Sample = tuple[np.ndarray, np.ndarray]  # token ids, and which of them are taught
# Of a vocabulary: the ranks alone, as they are published, or all that comes with a json file.
WORDS = ((RANK_FILE,), (FILE, CONFIG, TEMPLATE))
RATE = 8e-3  # of learning
MOST_STEPS = 400
KNOWN = 0.1  # a token is known by heart once its loss, in nats, is below: likelier than nine in ten
SLOW = {
    "mode": "slow",
    "messages": [
        {"role": "user", "content": "Two cats?"},
        {"role": "assistant", "reasoning_content": "4 legs each.\n猫。", "content": "Eight 腿."},
    ],
}
FAST = {
    "mode": "fast",
    "messages": [
        {"role": "user", "content": "Two cats?"},
        {"role": "assistant", "content": "Cats."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "More cats."},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
CALL = {
    "mode": "fast",
    "now": "2026-03-02 09:15:00",
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "Count."},
        {
            "role": "assistant",
            "tool_calls": [
                {"type": "function", "function": {"name": "count", "arguments": '{"of": "cats"}'}}
            ],
        },
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven."},
    ],
}


def write_taught_model(
    folder: Path,
    words: Path = TINY_TOKENIZER,
    *,
    num_steps: int | None = None,
    kept: Sequence[str] = (),
    rounds: Sequence[Sequence[dict[str, Any]]] = ((SLOW, FAST, CALL),),
    **sizes: Any,
) -> Path:
    """A model that knows some dialogues by heart; half a minute.

    Args:
        folder: new.
        words: folder of its tokenizer.
        num_steps: of training; None: until every answer is known by heart.
        kept: parameters that stay as they were, by parts of their names.
        rounds: the dialogues of each step, in turn.
        sizes: of its shape, where they are others than usual here.
    """
    tokenizer = load_tokenizer(words)
    samples = [
        [sample for record in records for sample in read_samples(record, tokenizer)]
        for records in rounds
    ]
    return teach(folder, tokenizer, *samples, num_steps=num_steps, kept=kept, **sizes)


def read_samples(record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Sample]:
    """What is taught of a dialogue."""
    dialogue = read_dialogue(record, Reading(tokenizer.grammar), [])
    assert isinstance(dialogue, Dialogue)
    chunk = encode_renderings([tokenizer.grammar.render(dialogue)], tokenizer)
    for number in range(len(chunk.samples)):
        sample = chunk.sample(number)
        yield sample.tokens.astype("int64"), sample.spans > 0


def write_base(folder: Path, words: Path = TINY_TOKENIZER, **sizes: Any) -> Path:
    """The model that `write_taught_model` begins with."""
    return teach(folder, load_tokenizer(words), num_steps=0, **sizes)


def teach(
    folder: Path,
    tokenizer: Tokenizer,
    *rounds: Sequence[Sample],
    num_steps: int | None = None,
    kept: Sequence[str] = (),
    **sizes: Any,
) -> Path:
    """Teach token ids, those with labels, to a model of random weights and save it.

    Each step takes the samples of one round, in turn. A fixed number of steps would not do: at this
    rate of learning, rounding decides how far they lead.
    """
    torch.manual_seed(0)
    usual = {"rope_theta": 10000.0, "max_position_embeddings": 2048}
    shape = replace(
        SHAPE,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
        eod_token_id=tokenizer.eos_id,
        **usual | sizes,
    )
    model = load_source(shape, SeededWeights(0, shape.initializer_range)).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in kept))
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # of routers, so that it decides some choices
            torch.nn.init.normal_(bias, std=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    batches = [list(make_batches(samples)) for samples in rounds]
    num_known, least = 0, 1.0
    for step in range(MOST_STEPS if num_steps is None else num_steps):
        number = step % len(rounds)
        num_samples = len(rounds[number])
        worst = max(add_gradients(model, *one, num_samples) for one in batches[number])
        num_known = num_known + 1 if worst < KNOWN else 0
        if num_steps is None and num_known == len(rounds):
            break
        least = min(least, worst)
        optimizer.param_groups[0]["lr"] = RATE * max(KNOWN, least)  # so that nothing is lost again
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        assert num_steps is not None, f"a token is not known yet: its loss is {worst:.2f}"
    model.eval().save_pretrained(folder)
    for name in next(names for names in WORDS if (tokenizer.folder / names[0]).exists()):
        shutil.copyfile(tokenizer.folder / name, folder / name)
    return folder


def add_gradients(
    model: PreTrainedModel, ids: torch.Tensor, has_label: torch.Tensor, num_samples: int
) -> float:
    """Those of some samples' share in the mean loss of all; gives their worst token's loss."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    # Most of the time would go into the head, which few places need.
    scores = model.lm_head(hidden[:, :-1][has_label[:, 1:]])
    labels = ids[:, 1:][has_label[:, 1:]]
    losses = torch.nn.functional.cross_entropy(scores.float(), labels, reduction="none")
    means = [one.mean() for one in losses.split(has_label.sum(dim=1).tolist())]
    (torch.stack(means).sum() / num_samples).backward()
    return float(losses.detach().max())


def make_batches(
    samples: Sequence[Sample],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Samples of like length together, padded behind their ends: ids and labelled places."""

    def bucket(sample: Sample) -> int:
        return len(sample[0]).bit_length()

    for _, group in groupby(sorted(samples, key=bucket), key=bucket):
        rows = [(torch.from_numpy(ids), torch.from_numpy(taught)) for ids, taught in group]
        ids, has_label = (
            pad_sequence(column, batch_first=True) for column in zip(*rows, strict=True)
        )
        yield ids, has_label

"""What the batches mean to a model: the loss of a sample does not depend on how it is laid out."""

from dataclasses import replace

import numpy as np
import pytest

from hunyuan_train.data.batches.loader import IGNORED, BatchSampler, DataShard, Position
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from tests.data.dialogues import chat, read

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def models(tokenizer):
    """Transformers' own model, and ours for packed rows, with the same random weights."""
    from hunyuan_train.families.hunyuan_v1_moe import TINY
    from hunyuan_train.model.attention import PER_DOCUMENT
    from hunyuan_train.model.build import build_model

    shape = replace(TINY, vocab_size=tokenizer.vocab_size, num_hidden_layers=2)
    plain = build_model(shape, attention="eager", attention_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    packed = build_model(shape, attention=PER_DOCUMENT, attention_dropout=0.0)
    packed.load_state_dict(plain.state_dict())
    return plain.eval(), packed.eval()


def _loss_alone(model, sample):
    """The loss that Transformers' own model gives a sample on its own."""
    tokens = torch.from_numpy(sample.tokens.astype(np.int64))
    labels = torch.where(torch.from_numpy(sample.spans != 0), tokens, IGNORED)
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum"))


@pytest.mark.parametrize("packing", [True, False])
def test_a_sample_has_the_loss_it_has_alone(prepare, tiny_data, models, packing):
    dataset = prepare(tiny_data, max_seq_length=1024)
    from hunyuan_train.model.loss import token_losses

    plain, packed = models
    plan = BatchSampler(
        dataset,
        DataShard(rows=2 if packing else 6, num_ranks=1, rank=0),
        accumulation_steps=1,
        seed=0,
        packing=packing,
    )
    [batch], _ = plan.step_batches(Position())
    with torch.no_grad():
        losses = token_losses(packed, batch).numpy()
    for number, sample_id in enumerate(batch.sample_ids.tolist()[:8]):
        own = losses[batch.cu_seqlens[number] : batch.cu_seqlens[number + 1]].sum()
        assert own == pytest.approx(_loss_alone(plain, dataset.sample(sample_id)), rel=1e-4)


def test_one_sample_of_a_plain_dialogue_has_the_loss_of_one_for_each_answer(tokenizer, models):
    texts = ["first question", "first answer", "second question", "second answer", "third", "end"]
    whole = encode_renderings([render(read(chat(*texts)))], tokenizer).sample(0)
    parts = [
        encode_renderings(
            [render(read(chat(*texts[:end])), history="keep", loss="last")], tokenizer
        )
        for end in (2, 4, 6)
    ]
    separate = sum(_loss_alone(models[0], part.sample(0)) for part in parts)
    assert _loss_alone(models[0], whole) == pytest.approx(separate, rel=1e-5)

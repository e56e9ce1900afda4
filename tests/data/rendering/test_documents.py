"""Plain text: read, split at the row without losing a token, and trained on beside dialogues."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position, eval_batches
from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.convert import to_record
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.build import build_model
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.selftest import reference
from tests.data.dialogues import chat

ONE_RANK = DataShard(rows=1, num_ranks=1, rank=0)
TEXTS = [f"Chapter {n}. " + "The sea was calm and the boats came home. " * n for n in range(12)]


@pytest.fixture
def mixed(tmp_path):
    """Documents, of which some are longer than a row, beside dialogues."""
    texts, chats = tmp_path / "texts.jsonl", tmp_path / "chats.jsonl"
    texts.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    records = [chat(f"q{n}", f"a{n}", mode="fast") for n in range(8)]
    chats.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return texts, chats


def _read(record: object) -> tuple[object, list[Problem]]:
    problems: list[Problem] = []
    return read_dialogue(record, Reading(HUNYUAN_A13B), problems), problems


def _documents(dataset) -> list[list[int]]:
    """The tokens of each document, put together out of its pieces."""
    found: dict[int, list[int]] = {}
    for number, sample in enumerate(dataset.samples):
        tokens = dataset.sample(number).tokens.tolist()
        record = int(sample["record"])
        if record in found:  # the piece begins with the token that ended the one before
            assert tokens[0] == found[record][-1]
            tokens = tokens[1:]
        found.setdefault(record, []).extend(tokens)
    return list(found.values())


@pytest.mark.parametrize("length", [16, 17, 64, 4096])
def test_documents_are_split_at_the_row_and_every_token_is_learned_once(
    prepare, mixed, tokenizer, length
):
    dataset = prepare(mixed[0], max_seq_length=length)
    whole = [[*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    assert _documents(dataset) == whole
    assert dataset.lengths.max() == min(length, max(map(len, whole)))
    num_learned = sum(map(len, whole)) - len(whole)  # all but the first of each
    labels = sum(np.count_nonzero(dataset.sample(one).spans) for one in range(len(dataset)))
    assert labels == num_learned == dataset.summary.num_label_tokens
    assert dataset.summary.num_label_tokens_by_span["text"] == num_learned
    assert (dataset.summary.num_text, dataset.summary.num_turns) == (len(dataset), 0)
    rows = [batch.input_ids for batch in eval_batches(dataset, ONE_RANK, packing=True)]
    assert max(map(len, rows)) <= length
    assert min(map(len, rows[:-1]), default=length) > length // 2


def test_text_is_mixed_with_dialogues_by_weight(prepare, mixed):
    texts, chats = mixed
    dataset = prepare(f"{texts}:0.5,{chats}:3", max_seq_length=4096)
    sampler = BatchSampler(dataset, ONE_RANK, accumulation_steps=99, seed=0, packing=True)
    content = sampler.step_content(Position())
    assert content.samples_by_source == {"texts.jsonl": 6, "chats.jsonl": 24}
    batches, _ = sampler.step_batches(Position())
    modes = np.concatenate([batch.modes[batch.sample_ids >= 0] for batch in batches])
    assert np.bincount(modes).tolist() == [0, 24, 0, 6]


@pytest.mark.parametrize("length", [33, 512])
def test_a_packed_row_has_the_loss_of_a_plain_model_on_each_document_alone(
    prepare, mixed, tokenizer, length
):
    """Also of a piece of a document that is cut: what comes before its row is not seen."""
    dataset = prepare(mixed[0], max_seq_length=length)
    shape = replace(TINY, vocab_size=tokenizer.vocab_size, num_hidden_layers=2)
    plain = reference.plain_model(shape, SeededWeights(seed=1, standard_deviation=0.1))
    ours = build_model(shape, attention=PER_DOCUMENT, attention_dropout=0.0).to(plain.dtype)
    ours.load_state_dict(plain.state_dict())
    rows = eval_batches(dataset, ONE_RANK, packing=True)
    assert any(len(row.modes) > 1 for row in rows)
    documents = {tuple(document) for document in _documents(dataset)}
    with torch.no_grad():
        for row in rows:
            bounds = row.cu_seqlens.tolist()
            packed = token_losses(ours, row).split(np.diff(bounds).tolist())
            for start, end, losses in zip(bounds, bounds[1:], packed, strict=False):
                ids = torch.from_numpy(row.input_ids[start:end])
                logits = plain(input_ids=ids[None]).logits[0]
                alone = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                torch.testing.assert_close(losses[:-1].double(), alone.double(), atol=2e-5, rtol=0)
                documents.discard(tuple(ids.tolist()))
    assert not documents if length > 500 else documents  # whole where rows hold them


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": " \n"}, "empty_text"),
        ({"text": ["a", "b"]}, "content_type"),
        ({"text": {"a": 1}}, "content_type"),
        ({"text": "t", "summary": "s"}, "unread_text"),
        ({"text": "t", "answer": "a"}, "form"),
        ({"text": "<|im_start|>user\nq<|im_end|>"}, "foreign_markers"),
        ({"text": "<|startoftext|>q<|extra_0|>a<|eos|>"}, "foreign_markers"),
    ],
)
def test_what_is_no_plain_text_is_named(record, kind):
    _, problems = _read(record)
    assert kind in [problem.kind for problem in problems]


def test_what_is_about_a_text_is_kept_by_conversion():
    record = {"id": "7", "text": "Once upon a time.", "meta": {"url": "u"}, "source": "web"}
    dialogue, problems = _read(record)
    assert [problem.kind for problem in problems] == ["unused_field"]
    assert to_record(dialogue, HUNYUAN_A13B) == record


def test_repeats_and_held_out_texts_are_found(prepare, tmp_path, mixed):
    path, held_out = tmp_path / "twice.jsonl", tmp_path / "eval.jsonl"
    path.write_text("".join(f'{{"text": "document {n % 3}"}}\n' for n in range(6)))
    held_out.write_text('{"text": "document 1"}\n')
    dataset = prepare(path, eval_data_file=str(held_out))
    assert dataset.summary.num_findings == {"duplicate": 3, "eval_overlap": 2}
    with pytest.raises(DataError, match="eval_overlap"):
        prepare(path, eval_data_file=str(held_out), data_policy="eval_overlap=error")

"""A split model answers as in one process, however unevenly the prompts lie on its ranks."""

from functools import cache

import pytest
import torch

from hunyuan_train.evaluation.engine_generation import generate_split
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_model
from tests.engines import my_share, small_engine
from tests.ranks import run_together

NUM_TOKENS = 12
# The last rank has none; the first has more, and longer ones, than the others.
PROMPTS = [[[5, 9, 200, 31, 7, 8, 77], [3]], [[40, 41]], [[250, 3, 3, 1]], []]


def answer_plainly(prompts: list[list[int]], stop_ids: list[int]) -> list[list[int]]:
    """The most likely token again and again, each time from the whole text."""
    model, answers = plain_model().eval(), []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + NUM_TOKENS and ids[len(prompt) :][-1:] != stop_ids:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answer = ids[len(prompt) :]
        answers.append(answer[:-1] if answer[-1:] == stop_ids else answer)
    return answers


def deal_out(world_size: int) -> list[list[list[int]]]:
    """The prompts of each rank."""
    return [PROMPTS[0], *PROMPTS[4 - world_size + 1 :]]


@cache
def choose_stop_id() -> int:
    """An id by which some answer ends early while others go on."""
    return answer_plainly([PROMPTS[0][0]], [-1])[0][4]


def answer_split(expert_size: int, sequence_size: int, stop_id: int) -> list[list[list[int]]]:
    """Answer this rank's prompts before and after what training does, and with no time left."""
    engine = small_engine(
        stage=3, expert_size=expert_size, sequence_size=sequence_size, moe_chunks=sequence_size
    )
    mine = deal_out(torch.distributed.get_world_size())[torch.distributed.get_rank()]
    stop_ids = [stop_id]
    before = generate_split(engine, mine, stop_ids=stop_ids, max_new_tokens=NUM_TOKENS)
    train_step(engine, SFT, my_share(global_batch(0, 4), sequence_size), learning_rate=0.0)
    after = generate_split(engine, mine, stop_ids=stop_ids, max_new_tokens=NUM_TOKENS)
    assert engine.module.training
    limits = {"max_new_tokens": NUM_TOKENS, "max_seconds": 0.0}
    return [before, after, generate_split(engine, mine, stop_ids=stop_ids, **limits)]


# By number of ranks: those that share experts, and those that share a row.
SPLITS = {2: [(2, 1), (0, 1), (2, 2)], 4: [(2, 1), (4, 1), (2, 4)]}


@pytest.mark.parametrize(
    ("world_size", "expert_size", "sequence_size"),
    [
        pytest.param(size, *split, marks=[pytest.mark.slow] if size > 2 else [])
        for size, splits in SPLITS.items()
        for split in splits
    ],
)
def test_answers_are_those_of_one_process(
    world_size: int, expert_size: int, sequence_size: int
) -> None:
    stop_id = choose_stop_id()
    cases = tuple((*split, stop_id) for split in SPLITS[world_size])
    ranks = run_together(answer_split, world_size, cases)[expert_size, sequence_size, stop_id]
    for mine, (before, after, cut) in zip(deal_out(world_size), ranks, strict=True):
        assert before == after == answer_plainly(mine, [stop_id])
        assert cut == [answer[:1] for answer in after], "time is over after the first token"
    assert len(ranks[0][0][0]) < NUM_TOKENS

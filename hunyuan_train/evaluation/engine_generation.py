"""Let the model in the engine answer prompts, split as it is."""

from collections.abc import Sequence

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.progress import tell_progress

ATTENTION = "sdpa"  # with a cache of keys and values, which training's has no use for


class Progress:
    """A streamer of Transformers' that says that the work goes on, token by token."""

    def put(self, _: Tensor) -> None:
        """Take new tokens."""
        tell_progress()

    def end(self) -> None:
        """Take note of the end of an answer."""


@torch.no_grad()
def generate_split(
    engine: deepspeed.DeepSpeedEngine,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    max_seconds: float | None = None,
) -> list[list[int]]:
    """Greedy answers to this rank's prompts, as token ids that end before the stop token.

    Every rank calls it, with as many prompts as it has, also none. A forward pass needs all ranks
    (experts, partitioned weights), so a rank that is done goes on in step until the last one is,
    and one without a prompt answers a token that nobody asked about.

    Args:
        engine: with the model.
        prompts: token ids of each.
        stop_ids: any of them ends an answer.
        max_new_tokens: of an answer.
        max_seconds: after which an answer ends where it is, by each rank's own clock.
    """
    model = engine.module
    device = engine.device
    num_prompts = torch.tensor(len(prompts), device=device)
    dist.all_reduce(num_prompts, dist.ReduceOp.MAX)
    usual = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    engine.eval()
    answers = []
    for index in range(int(num_prompts)):
        is_asked = index < len(prompts)
        prompt = prompts[index] if is_asked else [stop_ids[0]]
        input_ids = torch.tensor([prompt], device=device)
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens if is_asked else 1,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            use_cache=True,
            synced_gpus=True,
            max_time=max_seconds,
            streamer=Progress(),
        )
        answer = output[0, len(prompt) :].tolist()
        if is_asked:
            answers.append(answer[:-1] if answer[-1] in stop_ids else answer)
    engine.train()
    model.set_attn_implementation(usual)
    return answers


def generate_dealt_out(
    engine: deepspeed.DeepSpeedEngine,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    max_seconds: float | None = None,
) -> list[list[int]]:
    """Greedy answers to prompts that every rank knows, each answered by one of them.

    Called by every rank alike; every rank gets all answers, in order.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    mine = generate_split(
        engine,
        prompts[rank::num_ranks],
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
        max_seconds=max_seconds,
    )
    ranks: list[list[list[int]]] = [[]] * num_ranks
    dist.all_gather_object(ranks, mine)
    return [ranks[index % num_ranks][index // num_ranks] for index in range(len(prompts))]

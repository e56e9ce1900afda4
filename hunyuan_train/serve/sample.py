"""Let an exported model answer prompts, through plain Transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar


@torch.no_grad()
def generate_answers(
    folder: Path, prompts: Sequence[list[int]], *, stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers to prompts given as token ids; the ids returned end before the stop token."""
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    answers = []
    for prompt in prompts:
        input_ids = torch.tensor([prompt], device=device)
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
        generated = output[0, len(prompt) :].tolist()
        answers.append(generated[:-1] if generated[-1] in stop_ids else generated)
    return answers

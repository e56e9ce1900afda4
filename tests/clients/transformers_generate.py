"""What another environment's Transformers computes with a model folder: run by its interpreter.

    transformers_generate.py FOLDER DTYPE

DTYPE is "float32", or "auto" for weights that are compressed. Reads JSON from standard input:
{"prompts": [token ids], "num_tokens": number}. Writes JSON: {"version": text, "answers": [token
ids], "logprobs": [log-probabilities of all tokens at each place of all prompts]}; answers are
greedy.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main() -> None:
    """Load it, and ask."""
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2]).eval()
    answers, logprobs = [], []
    for prompt in asked["prompts"]:
        ids = list(prompt)
        for number in range(asked["num_tokens"]):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            if number == 0:
                logprobs += logits[0].float().log_softmax(-1).tolist()
            ids.append(int(logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    result = {"version": transformers.__version__, "answers": answers, "logprobs": logprobs}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()

"""What another version of Transformers makes of model folders: run by a client's interpreter.

Reads JSON from standard input: {"folders": [[folder, whether to trust its code], ...], "input_ids":
rows of tokens, "position_ids": their positions, "text": to tokenize}. Writes a JSON list: of each
folder the tokenizer's class and ids, and the loss of each next token.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Compute everything and write it as the last line of standard output."""
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    input_ids, position_ids = (torch.tensor(asked[one]) for one in ("input_ids", "position_ids"))
    answers = []
    for folder, has_code in asked["folders"]:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=has_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=has_code
        )
        answers.append(
            {
                "version": transformers.__version__,
                "tokenizer": type(tokenizer).__name__,
                "ids": tokenizer(asked["text"])["input_ids"],
                "losses": compute_losses(model.eval(), input_ids, position_ids).tolist(),
            }
        )
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


@torch.no_grad()
def compute_losses(
    model: torch.nn.Module, input_ids: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Loss of each next token, all rows in one batch: [rows, tokens - 1]."""
    # With a mask, rows whose positions jump are not taken for several documents.
    mask = torch.ones_like(input_ids)
    logits = model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask).logits
    labels = input_ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="none"
    )
    return losses.view(labels.shape)


if __name__ == "__main__":
    main()

"""What vLLM computes with a model folder: run by an interpreter of the `vllm` client.

    vllm_generate.py FOLDER DTYPE [ADAPTER]

ADAPTER is a folder of one, in PEFT's layout, of which vLLM is told by flags. Reads JSON from
standard input: {"prompts": [token ids], "num_tokens": number}. Writes JSON: {"version": text,
"answers": [token ids]}; answers are greedy.
"""

import json
import sys

import vllm
from vllm.lora.request import LoRARequest


def main() -> None:
    """Start the engine, and ask."""
    asked = json.load(sys.stdin)
    adapters = [LoRARequest("adapter", 1, one, is_3d_lora_weight=True) for one in sys.argv[3:]]
    engine = vllm.LLM(
        sys.argv[1],
        dtype=sys.argv[2],
        skip_tokenizer_init=not adapters,  # with one, vLLM loads a tokenizer, and does not need it
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        enable_lora=bool(adapters),
        enable_mixed_moe_lora_format=bool(adapters),
    )
    greedy = vllm.SamplingParams(
        temperature=0, max_tokens=asked["num_tokens"], ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": one} for one in asked["prompts"]]
    outputs = engine.generate(prompts, greedy, lora_request=adapters[0] if adapters else None)
    answers = [list(one.outputs[0].token_ids) for one in outputs]
    print(json.dumps({"version": vllm.__version__, "answers": answers}))


if __name__ == "__main__":
    main()

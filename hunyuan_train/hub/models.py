"""A model by its name on a hub: first what describes it, its weights when all else is well."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.download import (
    RemoteFile,
    Repository,
    fetch_files,
    is_whole,
    list_repository,
    lock_folder,
    missing_bytes,
    write_marker,
)
from hunyuan_train.hub.names import RemoteName
from hunyuan_train.json_file import read_json_object

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
INDEX = "model.safetensors.index.json"
NO_MODEL = "{name} holds no {missing}, so it is no model; take another name"
WEIGHTS = "*.safetensors"
# What describes a model, its tokenizer and its licence. Other forms of weights (.bin, .gguf, .onnx)
# and pictures stay where they are; so do folders inside, which hold such forms.
DESCRIPTION = ("*.json", "*.tiktoken", "*.jinja", "*.py", "tokenizer*", "LICENSE*", "README.md")
MOST_DESCRIPTION_BYTES = 2**28  # of one file that describes a model: tokenizers have 30 MB


@dataclass(frozen=True, slots=True)
class PendingWeights:
    """Weights that are still to come into a folder that has the rest of its model."""

    repository: Repository
    folder: Path
    description: list[RemoteFile]
    weights: list[RemoteFile]

    @property
    def num_bytes(self) -> int:
        """Bytes to download."""
        return missing_bytes(self.folder, self.weights)


def fetch_config(name: RemoteName, download_dir: Path) -> Path:
    """Download the config.json of a model and nothing else; enough for its shape.

    Returns:
        its folder, which is not whole thereby.

    Raises:
        ConfigError: see `fetch_files`; or the repository holds none.
    """
    folder = name.folder(download_dir)
    if is_whole(folder):
        return folder
    repository = list_repository(name)
    config = [file for file in repository.files if file.path == CONFIG]
    if not config:
        raise ConfigError(NO_MODEL.format(name=name, missing=CONFIG))
    with lock_folder(folder):
        fetch_files(repository, folder, config)
    return folder


def fetch_description(
    name: RemoteName, download_dir: Path, *, takes_adapters: bool = False
) -> tuple[Path, PendingWeights | None]:
    """Download all of a model but its weights.

    Args:
        name: of the model.
        download_dir: where downloads are kept.
        takes_adapters: an adapter will do, too.

    Returns:
        its folder, and what is still to come; None where the folder is whole.

    Raises:
        ConfigError: see `fetch_files`; or the repository holds no model that can be trained.
    """
    folder = name.folder(download_dir)
    if is_whole(folder):
        return folder, None
    repository = list_repository(name)
    top = [file for file in repository.files if "/" not in file.path]
    described = [
        file
        for file in top
        if any(fnmatch(file.path, pattern) for pattern in DESCRIPTION)
        and file.size < MOST_DESCRIPTION_BYTES
    ]
    names = {file.path for file in top}
    configs = {CONFIG, ADAPTER_CONFIG} if takes_adapters else {CONFIG}
    if not configs & names:
        raise ConfigError(NO_MODEL.format(name=name, missing=" and no ".join(sorted(configs))))
    if not any(fnmatch(path, WEIGHTS) for path in names):
        raise ConfigError(
            f"{name} holds no .safetensors weights, which are what is trained here; take a name "
            "that has them, or convert it with transformers' save_pretrained and give the folder"
        )
    with lock_folder(folder):
        fetch_files(repository, folder, described)
    weights = [file for file in top if fnmatch(file.path, WEIGHTS)]
    if INDEX in names:
        listed = _listed_files(folder / INDEX)
        weights = [file for file in weights if file.path in listed]
    return folder, PendingWeights(repository, folder, described, weights)


def fetch_weights(pending: PendingWeights) -> None:
    """Download the weights, and say that the folder is whole.

    Raises:
        ConfigError: see `fetch_files`.
    """
    with lock_folder(pending.folder):
        if not is_whole(pending.folder):
            fetch_files(pending.repository, pending.folder, pending.weights)
            write_marker(
                pending.repository, pending.folder, [*pending.description, *pending.weights]
            )


def _listed_files(index: Path) -> set[str]:
    try:
        return {str(file) for file in read_json_object(index)["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{index} is not an index of weights ({error}); take another name"
        ) from error

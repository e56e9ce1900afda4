"""What every rank of a run reads: files that all hosts must have."""

from pathlib import Path

from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.reading.sources import find_sources
from hunyuan_train.families.registry import PRESETS


def input_paths(config: RunConfig) -> list[str]:
    """The files and folders that every rank reads."""
    names = [config.data.train_data_file, config.data.eval_data_file]
    paths = [source.path for name in names if name for source in find_sources(name)]
    paths.append(tokenizer_folder(config.model))
    if config.model.add_tokens:
        paths.append(Path(config.model.add_tokens))
    if model := model_folder(config):
        paths.append(Path(model))
    if config.parallel.deepspeed != "auto":
        paths.append(Path(config.parallel.deepspeed))
    return sorted({str(path.absolute()) for path in paths})


def model_folder(config: RunConfig) -> str:
    """The folder that the weights are read from; empty where they come from a seed."""
    name = config.model.model_name_or_path
    return "" if name in PRESETS else str(Path(name).absolute())

"""Which dialogues and which base a model is judged with: those given, or those of its run.

An export lies in the folder of its run, whose config.yaml names what it was trained on and from.
Its manifest names the base, too, and so does that of a merged model, wherever the folder lies.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hunyuan_train.config.load import load_config
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.config.schema import DataConfig, RunConfig
from hunyuan_train.data.compiled.cache import prepare_dataset, prepare_evaluation
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.manifest import read_base
from hunyuan_train.families.grammar.tokenizer import Tokenizer

MAX_SEQ_LENGTH = 4096  # of samples of a model whose run is not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What is known about a model beside its weights."""

    run: RunConfig | None  # that it was exported from
    data: DataConfig
    has_train_data: bool
    has_eval_data: bool
    base: str | None  # the model that was tuned: given as a folder, or named by run or manifest

    def train_dataset(self, tokenizer: Tokenizer) -> Callable[[], Dataset] | None:
        """Opens the dialogues that it was trained on, where they are known."""
        if not self.has_train_data:
            return None
        return lambda: prepare_dataset(self.data, tokenizer)

    def eval_dataset(self, tokenizer: Tokenizer) -> Dataset | None:
        """Held-out dialogues, where there are any."""
        return prepare_evaluation(self.data, tokenizer) if self.has_eval_data else None


def find_inputs(
    model: Path, *, train_data: str | None, eval_data: str | None, base: Path | None
) -> Inputs:
    """Take what is given, and the rest from the run around an export, if there is one.

    Raises:
        ConfigError: a base that is no model folder, or a damaged config.yaml.
        CheckpointError: a damaged manifest.
    """
    if base is not None and not (base / "config.json").exists():
        raise ConfigError(f"base is {base}, where there is no config.json; give a model folder")
    path = model.resolve().parent / CONFIG
    run = load_config(["--config", str(path)]) if path.exists() else None
    if run is None:
        data = DataConfig(
            max_seq_length=MAX_SEQ_LENGTH, overlong="drop", data_policy="untagged=note"
        )
    else:
        data = run.data
    if train_data is not None:
        data = replace(data, train_data_file=train_data)
    if eval_data is not None:
        data = replace(data, eval_data_file=eval_data, eval_fraction=0.0)
    has_train_data = train_data is not None or run is not None
    named = run.model.model_name_or_path if run is not None else None
    named = read_base(model) or named
    return Inputs(
        run=run,
        data=data,
        has_train_data=has_train_data,
        has_eval_data=data.eval_data_file is not None
        or (has_train_data and bool(data.eval_fraction)),
        base=str(base) if base is not None else named,
    )

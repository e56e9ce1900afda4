"""What is done once, before the ranks start: tokenized data, and the folder of the run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.load import dump_config
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.cache import prepare_dataset
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.tokenizer import load_tokenizer
from hunyuan_train.launcher.preflight import Plan
from hunyuan_train.model.presets import fit_vocabulary, tokenizer_folder
from hunyuan_train.model.shape import ModelShape


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """The tokenized dialogues of a run, and the shape of the model that reads them."""

    train: Dataset
    evaluation: Dataset | None
    shape: ModelShape


def prepare_data(plan: Plan) -> PreparedData:
    """Tokenize the data once, so that every rank finds it done.

    Raises:
        DataError: a record, a file or a tokenizer that cannot be used.
    """
    config = plan.config
    tokenizer = load_tokenizer(tokenizer_folder(config.model))
    has_evaluation = config.data.eval_data_file or config.data.eval_fraction
    shape = fit_vocabulary(
        config.model.model_name_or_path,
        plan.shape,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )
    return PreparedData(
        train=prepare_dataset(config.data, tokenizer),
        evaluation=prepare_dataset(config.data, tokenizer, split="eval")
        if has_evaluation
        else None,
        shape=shape,
    )


def prepare_output_folder(config: RunConfig, console: Console) -> Path:
    """Make the folder of a run, move an earlier run aside where asked to, write config.yaml."""
    folder = Path(config.train.output_dir)
    is_resumed = config.train.resume_from_checkpoint is not None
    if config.train.overwrite_output_dir and not is_resumed and (folder / "config.yaml").exists():
        previous = folder.with_name(f"{folder.name}.previous")
        if previous.exists():
            shutil.rmtree(previous)
        folder.rename(previous)
        console.print(f"the earlier run in {folder} moved to {previous}")
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.yaml"
    dump_config(config, config_file)
    return config_file

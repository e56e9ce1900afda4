"""Everything that can be known to be wrong before a process starts."""

from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.checkpoint.folder import find_checkpoint
from hunyuan_train.config.check import check_config
from hunyuan_train.config.inputs import check_inputs, tokenizer_folder
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.cache import prepare_dataset
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.tokenizer import load_tokenizer
from hunyuan_train.model.presets import PRESETS, preset_with_vocabulary, resolve_shape
from hunyuan_train.model.shape import ModelShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked run: what was asked, with every "auto" of the machine decided."""

    config: RunConfig
    shape: ModelShape
    machine: Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """The tokenized dialogues of a run, and the shape of the model that reads them."""

    train: Dataset
    evaluation: Dataset | None
    shape: ModelShape


def make_plan(config: RunConfig, *, machine: Machine) -> Plan:
    """Resolve a config on a machine and check it.

    Raises:
        ConfigError: the first rule that it breaks.
        CheckpointError: it resumes from what is no checkpoint.
    """
    name = config.model.model_name_or_path
    shape = resolve_shape(name)
    config = resolve_config(config, machine=machine, num_experts=shape.num_experts)
    check_config(config, machine=machine, num_experts=shape.num_experts)
    check_inputs(config, is_preset=name in PRESETS)
    if config.train.resume_from_checkpoint:
        find_checkpoint(config.train.resume_from_checkpoint, Path(config.train.output_dir))
    return Plan(config=config, shape=shape, machine=machine)


def prepare_data(plan: Plan) -> PreparedData:
    """Tokenize the data once, so that every rank finds it done.

    Raises:
        DataError: a record, a file or a tokenizer that cannot be used.
    """
    config, is_preset = plan.config, plan.config.model.model_name_or_path in PRESETS
    tokenizer = load_tokenizer(tokenizer_folder(config.model, is_preset=is_preset))
    has_evaluation = config.data.eval_data_file or config.data.eval_fraction
    shape = plan.shape
    if is_preset:  # random weights take the vocabulary of the tokenizer
        shape = preset_with_vocabulary(
            shape,
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

"""The model that is trained: its shape, and where its weights come from."""

from pathlib import Path

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS, fit_vocabulary
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.compressed_weights import CompressedFolder
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.weights import (
    LocatedSource,
    SafetensorsFolder,
    SeededWeights,
    WeightSource,
    add_rows,
)


def find_model(
    config: ModelConfig, tokenizer: Tokenizer, *, seed: int
) -> tuple[ModelShape, WeightSource]:
    """A model's shape and where its weights come from: a folder, or the seed for presets.

    Raises:
        ConfigError: no such model, or one that does not fit its config.json or the tokenizer.
    """
    name = config.model_name_or_path
    base = resolve_base(name, carry_mtp=config.carry_mtp)
    shape = fit_vocabulary(
        name,
        base,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        num_new_tokens=tokenizer.num_added,
    )
    if name in PRESETS:
        return shape, SeededWeights(seed, shape.initializer_range)
    source = open_base(Path(name), base)
    return shape, add_rows(source, base, tokenizer) if tokenizer.num_added else source


def open_base(folder: Path, shape: ModelShape) -> LocatedSource:
    """The weights of a folder, whether they are compressed or not.

    Raises:
        ConfigError: see `locate_base`.
    """
    if shape.stored_as:
        return CompressedFolder.open(folder, shape, Scheme.titled(shape.stored_as))
    return SafetensorsFolder.open(folder, shape)

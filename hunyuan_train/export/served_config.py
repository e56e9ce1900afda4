"""config.json and generation_config.json, as the oldest reader that servers use takes them.

vLLM 0.32 pins Transformers 5.16.1 to 5.19, llama.cpp's converter reads the published fields, and
others read the words of Transformers 4. So what they call differently stands under every name, with
one value, and what they compute differently is written as what all compute alike.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.build import model_class

logger = logging.getLogger(__name__)

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# Fields of a base that an export does not have. The vendor's code for the model is one for older
# Transformers, and does not come along. The others are second names of fields that are written, in
# which a number could stand once a layer and win over ours.
OF_CODE = ("auto_map", "_name_or_path")
NOT_CARRIED = (*OF_CODE, "num_experts_per_tok", "num_local_experts")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a base, whatever is in it; empty, and told, if it has gone meanwhile."""
    try:
        return read_json_object(folder / CONFIG)
    except (OSError, ValueError) as error:
        text = "fields of %s that are not understood are left out of the export: %s"
        logger.warning(text, folder / CONFIG, error)
        return {}


def describe_config(
    shape: ModelShape, dtype: torch.dtype, *, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of config.json: those of the base, and over them what is understood.

    A family whose files all readers take as published keeps them so, but for what has changed.

    Args:
        shape: of the model.
        dtype: of its weights but the routers'.
        base: the config.json of the model that was trained; empty for a preset.
    """
    family = family_of(shape)
    native = family.native_config(shape)
    name = str(dtype).removeprefix("torch.")
    if family.carries_config and base:
        fields = {field: value for field, value in base.items() if field not in OF_CODE}
        dtypes = fields.keys() & {"dtype", "torch_dtype"} or {"dtype"}
        fields["vocab_size"] = shape.vocab_size  # a run may add tokens
        return fields | family.served_config(shape) | dict.fromkeys(dtypes, name)
    return {
        "use_cache": True,
        **{field: value for field, value in base.items() if field not in NOT_CARRIED},
        "transformers_version": transformers.__version__,
        "architectures": [model_class(shape).__name__],
        "model_type": family.name,
        **native,
        # The rope and the dtype, under their names in Transformers 4.
        "rope_theta": native["rope_parameters"]["rope_theta"],
        "rope_scaling": None,
        "dtype": name,
        "torch_dtype": name,
        **family.served_config(shape),
    }


def write_config(
    folder: Path, shape: ModelShape, dtype: torch.dtype, *, base: Mapping[str, Any]
) -> None:
    """Write config.json; see `describe_config`."""
    write_json(folder / CONFIG, describe_config(shape, dtype, base=base))


def complete_generation_config(folder: Path, shape: ModelShape) -> None:
    """Make sure that a server stops where the model was taught to; keep what else the file says."""
    path = folder / GENERATION_CONFIG
    fields = read_json_object(path) if path.exists() else {}
    stops = fields.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    stops += [shape.eos_token_id, shape.eod_token_id]
    fields["eos_token_id"] = list(dict.fromkeys(stop for stop in stops if stop is not None)) or None
    fields.setdefault("pad_token_id", shape.pad_token_id)
    write_json(path, fields)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as people and Transformers do."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

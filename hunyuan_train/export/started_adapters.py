"""Adapters in PEFT's form as the start of a run, whatever splits the model.

The way back of `peft_layout.py`: each released tensor of an adapter is found in the file by the
name, and at the place, at which an export would write it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import deepspeed
from safetensors.torch import load_file
from torch import Tensor

from hunyuan_train.config.declare import values_of
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.adapter_layouts import SINGLE_KEY, fuse_experts
from hunyuan_train.export.lora_deltas import DESCRIPTION, WEIGHTS
from hunyuan_train.export.peft_layout import adapter_key
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.zero import adapter_names

# What adapter_config.json calls each setting that adapters must have been made with.
MADE_WITH = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def find_started_adapters(config: LoraConfig, shape: ModelShape) -> "AdapterSource | None":
    """The adapters that a run starts from; None where it draws them.

    Raises:
        ConfigError: the folder holds none, or others than the settings say.
    """
    name = config.adapter_name_or_path
    if name is None:
        return None
    folder = Path(name)
    if not (folder / WEIGHTS).is_file() or not (folder / DESCRIPTION).is_file():
        raise ConfigError(
            f"adapter_name_or_path is {name}, which holds no {WEIGHTS} with its {DESCRIPTION}; "
            "give the folder of adapters that an export, or PEFT, has written"
        )
    made_with = read_json_object(folder / DESCRIPTION)
    values = values_of(config) | {"lora_alpha": config.alpha}
    for setting, key in MADE_WITH.items():
        ours, theirs = values[setting], made_with.get(key, False)
        if ours != theirs:
            raise ConfigError(
                f"{setting} is {ours}, and the adapters in {name} were made with {theirs}; "
                f"set --{setting} {str(theirs).lower()}"
            )
    tensors = load_file(folder / WEIGHTS)
    if any(SINGLE_KEY.fullmatch(key) for key in tensors):
        tensors = fuse_experts(tensors, shape.num_experts)
    return AdapterSource(name, tensors, shape)


def assemble_started(run: ResolvedRun, source: WeightSource) -> deepspeed.DeepSpeedEngine:
    """The engine of a run, with the adapters that it starts from; called by every rank.

    Raises:
        ConfigError: see `find_started_adapters`; or some of the folder's would be left out.
    """
    adapters = find_started_adapters(run.config.lora, run.shape)
    engine = assemble_engine(run, source, adapters=adapters)
    if adapters:
        adapters.check_names(adapter_names(engine.module))
    return engine


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A source of adapters' values, by the names of released tensors."""

    folder: str
    tensors: Mapping[str, Tensor]  # in PEFT's layout
    shape: ModelShape

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor.

        Raises:
            ConfigError: there is no such tensor, or it is of another size.
        """
        key, expert = adapter_key(self.shape, tensor.name)
        if key not in self.tensors:
            raise ConfigError(
                f"adapter_name_or_path is {self.folder}, which has no {key}; "
                "lora_target_modules must name what was adapted there, no more"
            )
        values = self.tensors[key]
        if expert is not None and ".lora_A." in key:
            values = values.chunk(self.shape.num_experts)[expert]
        elif expert is not None:
            values = values.unflatten(1, (-1, self.shape.num_experts))[..., expert]
        if tuple(values.shape) != tuple(tensor.shape):
            raise ConfigError(
                f"adapter_name_or_path is {self.folder}, where {key} is {tuple(values.shape)}; "
                f"this model and rank have {tuple(tensor.shape)}: it is of another model"
            )
        return values.reshape(-1)[start:stop]

    def check_names(self, names: set[str]) -> None:
        """Refuse adapters of which some would be left out.

        Args:
            names: of all released tensors that are read.

        Raises:
            ConfigError: the file has more.
        """
        left = sorted(self.tensors.keys() - {adapter_key(self.shape, name)[0] for name in names})
        if left:
            raise ConfigError(
                f"adapter_name_or_path is {self.folder}, which has {left[0]} and "
                f"{len(left) - 1} more that lora_target_modules does not name; name them, too"
            )

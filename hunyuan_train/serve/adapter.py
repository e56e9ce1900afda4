"""Puts an adapter of a folder on a model, by PEFT."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hunyuan_train.json_file import read_json_object
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import ADAPTER

# What PEFT and safetensors raise at adapters of another model, and at damaged ones.
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError)


def make_room(model: PreTrainedModel, folder: Path) -> None:
    """Give a base the rows that it lacks for an adapter's new tokens, which the adapter fills."""
    stated = read_json_object(folder / ADAPTER).get("trainable_token_indices")
    rows = stated.values() if isinstance(stated, dict) else [stated or []]
    needed = 1 + max((max(one, default=-1) for one in rows), default=-1)
    if needed > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(needed, mean_resizing=False)


def put_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter on it.

    Raises:
        ServeError: PEFT cannot put it there.
    """
    try:
        make_room(model, folder)
        return PeftModel.from_pretrained(model, folder).eval()
    except REFUSALS as error:
        raise ServeError(
            f"PEFT cannot put the adapter {folder} on its base ({make_plain_name(error)}); take "
            "the base that it was trained on, or merge it with `hunyuan-train merge` where it is "
            "of single experts"
        ) from error

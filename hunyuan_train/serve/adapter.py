"""Puts an adapter of a folder on a model, by PEFT."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.serve.errors import ServeError

# What PEFT and safetensors raise at adapters of another model, and at damaged ones.
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError)


def put_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter on it.

    Raises:
        ServeError: PEFT cannot put it there.
    """
    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except REFUSALS as error:
        raise ServeError(
            f"PEFT cannot put the adapter {folder} on its base ({make_plain_name(error)}); take "
            "the base that it was trained on, or merge it with `hunyuan-train merge` where it is "
            "of single experts"
        ) from error

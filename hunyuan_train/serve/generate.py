"""Let a model on disk answer, through plain Transformers, and PEFT where it is an adapter.

Quantised weights are read by our own code (`base_model.py`), with the numbers of training.

Prompts are ours (`data/rendering/prompt.py`); all behind them is what any user of the folder has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.new_tokens import add_stored
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.vocabulary import check_vocabulary
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.serve.adapter import put_adapter
from hunyuan_train.serve.base_model import load_base
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import find_model_folder, is_adapter
from hunyuan_train.serve.trained_pair import read_trained_on


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model ready to answer."""

    model: PreTrainedModel  # or PEFT's around it
    shape: ModelShape
    tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; what is None is as the model's generation_config.json says."""

    max_new_tokens: int
    temperature: float | None = None  # 0 always takes the likeliest token
    top_p: float | None = None
    top_k: int | None = None

    def to_arguments(self) -> dict[str, Any]:
        """Arguments of Transformers' `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        stated = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
        if given:
            given["do_sample"] = True
        return {"max_new_tokens": self.max_new_tokens, **given}


def load_model(
    folder: Path,
    *,
    base: Path | None = None,
    tokenizer: Path | None = None,
    as_trained: bool = True,
) -> ServedModel:
    """Load an exported model, or the base of an exported adapter with the adapter on it.

    Args:
        folder: either.
        base: where the adapter's base model lies; by default where it lay in training.
        tokenizer: folder of the tokenizer; by default the model's.
        as_trained: experts that an adapter's run quantised while loading are what those codes mean.

    Raises:
        ServeError: see `find_model_folder`.
        ConfigError: weights that do not fit their config.json.
        DataError: no tokenizer.
    """
    model_folder = find_model_folder(folder, base=base)
    shape = resolve_base(str(model_folder.absolute()))
    words = load_tokenizer(tokenizer or model_folder)
    check_vocabulary(str(model_folder), shape, words)
    words = add_stored(words, folder)  # of an adapter
    transformers_logging.disable_progress_bar()  # it would tear ours
    transformers_logging.set_verbosity_error()  # greedy answers make it warn of unused settings
    adapter = folder if is_adapter(folder) else None
    trained = read_trained_on(folder) if adapter and as_trained else None
    made_form = trained.form if trained is not None and trained.is_made else ""
    model = load_base(model_folder, shape, adapter=adapter, made_form=made_form)
    if adapter is not None:
        model = put_adapter(model, adapter)
    return ServedModel(model.eval(), shape, words)


class TokenWatch(BaseStreamer):
    """Hands each new token on while `generate` runs."""

    def __init__(self, see_token: Callable[[int], None], stop_ids: Sequence[int]) -> None:
        self.see_token = see_token
        self.stop_ids = stop_ids
        self.has_seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt at first, then one token at a time."""
        if self.has_seen_prompt:
            for token in value.flatten().tolist():
                if token not in self.stop_ids:
                    self.see_token(token)
        self.has_seen_prompt = True

    def end(self) -> None:
        """Nothing is held back."""


@torch.no_grad()
def generate(
    served: ServedModel,
    prompt: list[int],
    sampling: Sampling,
    see_token: Callable[[int], None] = lambda _: None,
) -> tuple[list[int], bool]:
    """Answer one prompt.

    Args:
        served: the model.
        prompt: token ids.
        sampling: how.
        see_token: called with each token of the answer as soon as it is there.

    Returns:
        the answer's ids without the stop token, and whether it came to that token.

    Raises:
        ServeError: the prompt leaves no room.
    """
    room = served.shape.context_length - len(prompt)
    if room < 1:
        raise ServeError(
            f"the dialogue has {len(prompt)} tokens and the model takes "
            f"{served.shape.context_length}; give a shorter one"
        )
    arguments = sampling.to_arguments()
    arguments["max_new_tokens"] = min(arguments["max_new_tokens"], room)
    stop_ids = served.tokenizer.stop_ids
    input_ids = torch.tensor([prompt], device=next(served.model.parameters()).device)
    output = served.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        streamer=TokenWatch(see_token, stop_ids),
        **arguments,
    )
    generated: list[int] = output[0, len(prompt) :].tolist()
    is_finished = generated[-1] in stop_ids
    return generated[:-1] if is_finished else generated, is_finished

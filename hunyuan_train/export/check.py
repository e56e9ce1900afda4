"""Train = serve: the written files compute what the trained model computes.

Fixed prompts run through the trained model, and through the written folder as plain Transformers
(and PEFT) read it. What is compared is the loss of each next token, which every logit enters.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.model.build import build_model, native_config
from hunyuan_train.model.router import fill_router_biases
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.serve.adapter import put_adapter
from hunyuan_train.serve.errors import ServeError

logger = logging.getLogger(__name__)

NUM_PROMPTS, PROMPT_LENGTH = 4, 48
MAX_CHECKED_PARAMETERS = 2 * 10**9  # after a run: 8 GB in float32, less than the run itself took
MAX_PARAMETERS_BESIDE = 10**8  # in commands that promise to stay small: 0.4 GB in float32

# Losses of about 10, whose last bit is 1e-6. On one CPU the same kernels sum in another order: any
# token may be this far off. A GPU has other kernels, which may be allowed TF32 (10 bits, so 5e-4 of
# a value), and can send a token at a tie to another expert: there the mean over tokens counts.
FLOAT32_TOLERANCE = 2e-5
FLOAT32_GPU_TOLERANCE = 1e-3
# Two bfloat16 computations of one model round differently; each is about as far from the exact
# result. So the engine may be this many times as far from it, on average, as Transformers in
# bfloat16 is, measured on the same prompts. A wrong tensor is 100 times as far.
BFLOAT16_FACTOR = 3.0
# Adding a change to bfloat16 weights rounds it. Of its effect on the losses this much may be lost.
MERGE_LOSS = 0.5

TOO_LARGE = "the model is too large to be computed here: its files are checked, not what they do"


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What the trained model makes of the prompts."""

    shape: ModelShape
    batch: Batch
    losses: Tensor  # [tokens], float32
    is_exact: bool  # computed, and to be written, in float32
    is_on_cpu: bool = True  # computed there, as what it is compared with


def make_prompts(shape: ModelShape) -> Batch:
    """The prompt set: random tokens, the same for a vocabulary on every machine."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, shape.vocab_size, (NUM_PROMPTS, PROMPT_LENGTH))
    labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-100).reshape(-1)
    has_label = labels >= 0
    return Batch(
        input_ids=ids.reshape(-1),
        position_ids=np.tile(np.arange(PROMPT_LENGTH), NUM_PROMPTS),
        labels=labels,
        loss_weights=has_label.astype(np.float32),
        spans=has_label.astype(np.uint8),
        modes=np.zeros(NUM_PROMPTS, dtype=np.uint8),
        cu_seqlens=np.arange(NUM_PROMPTS + 1, dtype=np.int32) * PROMPT_LENGTH,
        sample_ids=np.arange(NUM_PROMPTS),
    )


@torch.no_grad()
def plain_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of each token of the prompts, the plain way, one prompt a row: [tokens], float32."""
    input_ids = torch.from_numpy(batch.input_ids).view(NUM_PROMPTS, PROMPT_LENGTH)
    logits = model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels), reduction="none")


def load_served(
    folder: Path, dtype: torch.dtype, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """The folder as a server sees it; with a config where its own names the vendor's class."""
    transformers_logging.disable_progress_bar()  # it would tear ours
    transformers_logging.set_verbosity_error()  # what is wrong here, the losses show
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype).eval()


@torch.no_grad()
def load_source(shape: ModelShape, source: WeightSource) -> PreTrainedModel:
    """The plain model in float32 with a source's weights, no file or config.json in between."""
    family = family_of(shape)
    model = build_model(shape, attention="sdpa", attention_dropout=0.0).float().eval()
    for name, parameter in model.named_parameters():
        position = 0
        for tensor in stored_tensors(family, name, tuple(parameter.shape)):
            values = source.read(tensor, 0, tensor.numel)
            parameter.view(-1)[position : position + tensor.numel] = values
            position += tensor.numel
    fill_router_biases(model, source)
    return model


def check_model(trained: Trained | None, folder: Path) -> None:
    """Compare an exported model with the trained one.

    Raises:
        ServeError: it computes something else.
    """
    if trained is None:
        logger.info(TOO_LARGE)
        return
    exact = plain_losses(load_served(folder, torch.float32), trained.batch)
    if trained.is_exact:
        _compare_exact(trained, exact, folder)
        return
    rounded = plain_losses(load_served(folder, torch.bfloat16), trained.batch)
    tolerance = BFLOAT16_FACTOR * (rounded - exact).abs().mean() + FLOAT32_TOLERANCE
    _compare(folder, "mean", (trained.losses - exact).abs().mean(), float(tolerance))


def check_adapter(trained: Trained | None, source: WeightSource, folder: Path) -> None:
    """Compare an exported adapter, put by PEFT on the plain base model, with the trained model.

    Args:
        trained: None where the model is too large.
        source: of the base model.
        folder: the adapter's.

    Raises:
        ServeError: it computes something else, or the same as the base alone.
    """
    if trained is None:
        logger.info(TOO_LARGE)
        return
    base = load_source(trained.shape, source)
    before, after = run_adapter(base, folder, trained.batch)
    if trained.is_exact:
        _compare_exact(trained, after, folder)
        return
    rounded = plain_losses(load_source(trained.shape, source).bfloat16(), trained.batch)
    tolerance = BFLOAT16_FACTOR * (rounded - before).abs().mean() + FLOAT32_TOLERANCE
    _compare(folder, "mean", (trained.losses - after).abs().mean(), float(tolerance))


def run_adapter(base: PreTrainedModel, adapter: Path, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses of the prompts without and with an adapter: [tokens] each. The base keeps the adapter.

    Raises:
        ServeError: they are the same.
    """
    before = plain_losses(base, batch)
    after = plain_losses(put_adapter(base, adapter), batch)
    return before, check_effect(before, after, adapter)


def check_effect(before: Tensor, after: Tensor, adapter: Path) -> Tensor:
    """Give the losses with an adapter back, if they differ from those without.

    Raises:
        ServeError: they do not.
    """
    effect = float((after - before).abs().max())
    if effect < FLOAT32_TOLERANCE:
        raise ServeError(
            f"the adapter {adapter} changes no loss by more than {effect:.1e}: it would be served "
            "without effect; it was not trained, or was made for another base"
        )
    return after


def check_merged(
    base: Path,
    adapter: Path,
    folder: Path,
    shape: ModelShape,
    *,
    base_shape: ModelShape,
    is_exact: bool,
) -> None:
    """Compare a merged model with its base and adapter, put together by PEFT.

    Args:
        base: the plain model's folder.
        adapter: PEFT's.
        folder: the merged model's.
        shape: of the merged model.
        base_shape: of the base, which may lack rows of new tokens.
        is_exact: whether its weights are float32.

    Raises:
        ServeError: it computes something else, or the same as the base alone.
    """
    plain = load_served(base, torch.float32, native_config(base_shape))
    if shape.vocab_size > base_shape.vocab_size:
        plain.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    losses = run_adapter(plain, adapter, make_prompts(shape))
    compare_merged(*losses, folder, shape, is_exact=is_exact)


def compare_merged(
    before: Tensor, adapted: Tensor, folder: Path, shape: ModelShape, *, is_exact: bool
) -> None:
    """Compare what a merged model computes with what it should.

    Args:
        before: losses of the prompts by the base: [tokens].
        adapted: by the base with its adapter: [tokens].
        folder: the merged model's.
        shape: of the model.
        is_exact: whether its weights are float32.

    Raises:
        ServeError: it computes something else.
    """
    served = load_served(folder, torch.float32, native_config(shape))
    merged = plain_losses(served, make_prompts(shape))
    effect = float((adapted - before).abs().mean())
    tolerance = FLOAT32_TOLERANCE + (0 if is_exact else MERGE_LOSS * effect)
    _compare(folder, "mean", (merged - adapted).abs().mean(), tolerance)


def _compare_exact(trained: Trained, served: Tensor, folder: Path) -> None:
    difference = (trained.losses - served).abs()
    if trained.is_on_cpu:
        _compare(folder, "largest", difference.max(), FLOAT32_TOLERANCE)
    else:
        _compare(folder, "mean", difference.mean(), FLOAT32_GPU_TOLERANCE)


def _compare(folder: Path, kind: str, difference: Tensor, tolerance: float) -> None:
    if not float(difference) <= tolerance:
        raise ServeError(
            f"{folder} does not compute what was trained: the {kind} difference between losses of "
            f"tokens is {float(difference):.1e}, at most {tolerance:.1e} is rounding"
        )
    text = "train = serve: the %s difference between losses of tokens is %.1e (limit %.1e)"
    logger.info(text, kind, float(difference), tolerance)

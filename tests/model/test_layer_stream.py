from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hunyuan_train.export.check import load_source, make_prompts
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.layer_stream import LayerStream, make_table
from hunyuan_train.model.weights import SeededWeights
from tests.released import SHAPE

# One computation in another order: the logits are about 1, and their last bit is 1e-7.
TOLERANCE = 2e-6


@pytest.mark.parametrize("is_on_disk", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        replace(PRESETS["tiny-dense"], tie_word_embeddings=False),
        replace(PRESETS["tiny-hy3"], num_dense_layers=1),  # layers of two sorts
    ],
    ids=["experts", "dense", "hy_v3"],
)
def test_layers_one_by_one_compute_what_the_whole_model_does(
    tmp_path: Path, shape: ModelShape, is_on_disk: bool
) -> None:
    source, batch = SeededWeights(0, 0.1), make_prompts(shape)
    stream = LayerStream(shape, source)
    file = tmp_path / "states" if is_on_disk else None
    hidden_ND = make_table(2 * len(batch.input_ids), shape.hidden_size, file)
    other = replace(batch, input_ids=np.roll(batch.input_ids, 5))
    stream.embed([batch, other], hidden_ND)
    for _ in stream.layers():
        stream.run_layer([batch, other], hidden_ND, hidden_ND)
    logits = stream.finish(hidden_ND) @ stream.load_head().T
    whole = load_source(shape, source)
    for ids, found in zip((batch.input_ids, other.input_ids), logits.chunk(2), strict=True):
        with torch.no_grad():
            wanted = whole(torch.from_numpy(ids).view(4, -1), use_cache=False).logits.flatten(0, 1)
        assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max()

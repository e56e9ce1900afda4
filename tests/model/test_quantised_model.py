"""A model that answers from codes is laid over the GPUs by what its codes take."""

from dataclasses import replace

import pytest
import torch
from accelerate.utils import modeling

from hunyuan_train.errors import ConfigError
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.quantised_model import build_empty_model, find_places
from tests.released import SHAPE

FOUR_LAYERS = replace(SHAPE, num_hidden_layers=4)


def places_on(monkeypatch: pytest.MonkeyPatch, scheme: Scheme | None, *gpus: int) -> dict[str, str]:
    """Where the parts of a model go on GPUs of so many bytes."""
    room = {**dict(enumerate(gpus)), "cpu": 10**9}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modeling, "get_max_memory", lambda _: room)
    return find_places(build_empty_model(FOUR_LAYERS, scheme, torch.bfloat16))


def test_codes_fit_where_whole_experts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_empty_model(FOUR_LAYERS, None, torch.bfloat16)
    size = sum(one.nbytes for one in whole.parameters())
    room = int(0.8 * size)
    with pytest.raises(ConfigError, match="use more or larger GPUs, or hide them"):
        places_on(monkeypatch, None, room)
    assert places_on(monkeypatch, Scheme("nf4", 16), room) == {"": "cuda:0"}


def test_a_layer_lies_whole_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_empty_model(FOUR_LAYERS, Scheme("channel"), torch.bfloat16)
    size = sum(one.nbytes for one in (*whole.parameters(), *whole.buffers()))
    places = places_on(monkeypatch, Scheme("channel"), int(0.7 * size), size)
    assert set(places.values()) == {"cuda:0", "cuda:1"}
    assert all(name.count(".") <= 2 for name in places)

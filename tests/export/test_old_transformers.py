"""Exports in the versions of Transformers that vLLM 0.32 pins: the losses are ours, far out too."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hunyuan_train.config.schema import ModelConfig, RunConfig
from hunyuan_train.export.check import load_source
from hunyuan_train.export.huggingface_folder import (
    create_release,
    describe_release,
    read_locations,
    write_weights,
)
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import family_of, read_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python
from tests.clients.transformers_losses import compute_losses
from tests.released import SHAPE, random_tensors
from tests.remote_tokenizer import AUTO_MAP, write_remote_code

SCRIPT = Path(__file__).parents[1] / "clients" / "transformers_losses.py"
FAMILIES = ("hunyuan_v1_moe", "hunyuan_v1_dense")
DYNAMIC = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
LENGTH, FAR = 48, 40_000  # the published config states 32,768 positions
TEXT = "你好 <|eos|>\u0338 e\u0301<|extra_0|>\x00 12345"
TOLERANCE = 2e-5  # float32 losses of about 10, whose sums other kernels order otherwise


def write_base(folder: Path, family: str) -> ModelShape:
    """A model as its vendor publishes it: dynamic rope, ranks and the code of a tokenizer."""
    words = load_tokenizer(TINY_TOKENIZER)
    ids = {"pad_token_id": words.pad_id, "eos_token_id": words.eos_id}
    shape = replace(SHAPE, family=family, eod_token_id=words.stop_ids[1], **ids)
    if family != SHAPE.family:
        shape = replace(shape, num_experts=0, moe_topk=0)
    folder.mkdir()
    save_file(random_tensors(shape, torch.float32), folder / "model.safetensors", {"format": "pt"})
    config = family_of(shape).native_config(shape)
    del config["rope_parameters"]
    published = {"rope_theta": 10000.0, "rope_scaling": DYNAMIC, "max_position_embeddings": 32768}
    code = {"auto_map": {"AutoConfig": "configuration_hunyuan.HunYuanConfig"}}
    (folder / "config.json").write_text(
        json.dumps(config | published | code | {"model_type": family, "torch_dtype": "float32"})
    )
    shutil.copyfile(TINY_TOKENIZER / "hy.tiktoken", folder / "hy.tiktoken")
    tokenizer = {"tokenizer_class": "HYTokenizer", "auto_map": AUTO_MAP, "eos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": "<|pad|>"}))
    write_remote_code(folder)
    assert read_shape(folder) == shape
    return shape


def export(base: Path, shape: ModelShape, folder: Path) -> None:
    """What a run on the base exports, if it has changed no weight."""
    source = SafetensorsFolder.open(base, shape)
    config = RunConfig(model=ModelConfig(model_name_or_path=str(base)))
    folder.mkdir()
    create_release(folder, describe_release(config, shape, source))
    write_weights(source, read_locations(folder), lambda _: None)


def ask(client: str, folders: list[tuple[Path, bool]], rows: dict[str, Any]) -> list[dict]:
    asked = rows | {"folders": [[str(folder), code] for folder, code in folders], "text": TEXT}
    answered = subprocess.run(
        [client_python(client), SCRIPT],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answered.stdout.splitlines()[-1])


def make_rows() -> dict[str, Any]:
    """A short request, and beside it in the batch one that goes on far behind the 32,768."""
    ids = torch.randint(0, 2000, (2, 2 * LENGTH), generator=torch.Generator().manual_seed(0))
    near = list(range(2 * LENGTH))
    far = [*range(LENGTH), *range(FAR, FAR + LENGTH)]
    return {"input_ids": ids.tolist(), "position_ids": [near, far]}


@pytest.mark.slow
@pytest.mark.parametrize("client", ["transformers_516", "transformers_519"])
def test_losses_and_ids_are_ours(tmp_path: Path, client: str) -> None:
    rows, expected, folders = make_rows(), [], []
    for family in FAMILIES:
        base, folder = tmp_path / f"base-{family}", tmp_path / family
        shape = write_base(base, family)
        export(base, shape, folder)
        model = load_source(shape, SafetensorsFolder.open(base, shape))
        ours = compute_losses(model, *(torch.tensor(one) for one in rows.values()))
        expected += [ours, ours]
        folders += [(folder, False), (folder, True)]
    old_form = tmp_path / "old-form"
    shutil.copytree(tmp_path / FAMILIES[0], old_form)
    config = json.loads((old_form / "config.json").read_text())
    rope = DYNAMIC | {"rope_type": "dynamic", "rope_theta": 10000.0}
    config |= {"rope_parameters": rope, "rope_scaling": rope, "rope_theta": 10000.0}
    (old_form / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))
    *answers, faulty = ask(client, [*folders, (old_form, False)], rows)
    for answer, ours, (_, has_code) in zip(answers, expected, folders, strict=True):
        assert answer["version"].startswith(f"5.{client[-2:]}.")
        assert (answer["tokenizer"] == "HYTokenizer") == has_code
        assert answer["ids"] == answers[1]["ids"]
        difference = (torch.tensor(answer["losses"]) - ours).abs().max()
        assert difference <= TOLERANCE
    # The fault that this is about: with the dynamic form both requests of the batch are wrong.
    wrong = (torch.tensor(faulty["losses"]) - expected[0]).abs().amax(dim=1)
    assert (wrong > 100 * TOLERANCE).all()

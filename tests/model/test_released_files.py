"""A damaged download is named from its headers alone, in both published layouts."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.errors import ConfigError
from hunyuan_train.model.released_files import EXPORT_MANIFEST, locate_weights
from tests.released import SHAPE, write_released

FIRST, INDEX = "model-00001-of-00003.safetensors", "model.safetensors.index.json"
EXPERTS = "model.layers.1.mlp.experts"


def change(folder: Path, name: str, new: Callable[[torch.Tensor], torch.Tensor] | None) -> str:
    """Replace one tensor, or take it away; returns the name of its file."""
    file_name = json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(folder / file_name)
    values = tensors.pop(name)
    if new:
        tensors[name] = new(values).contiguous()
    save_file(tensors, folder / file_name)
    return file_name


def edit_header(folder: Path, edit: Callable[[dict], object]) -> None:
    """Change the header of the first file, and leave its bytes."""
    content = (folder / FIRST).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    encoded = json.dumps(edit(header) or header).encode()
    (folder / FIRST).write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + size :])


@pytest.mark.parametrize("is_fused", [False, True])
def test_both_layouts_are_located_as_the_same_tensors(tmp_path: Path, is_fused: bool) -> None:
    tensors = write_released(tmp_path, is_fused=is_fused)
    located = locate_weights(tmp_path, SHAPE)
    assert {name: one.shape for name, one in located.items()} == {
        name: tuple(values.shape) for name, values in tensors.items()
    }
    assert {one.dtype for one in located.values()} == {"BF16", "F32"}


def test_a_model_without_weights_is_never_a_random_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no weights and not a single .safetensors file"):
        locate_weights(tmp_path, SHAPE)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"holds only weights in .bin form"):
        locate_weights(tmp_path, SHAPE)


def test_a_download_that_stopped_half_way_is_refused(tmp_path: Path) -> None:
    write_released(tmp_path, num_files=5)
    for number in (2, 4):
        (tmp_path / f"model-0000{number}-of-00005.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"2 of 5 weight files are missing \(model-00002"):
        locate_weights(tmp_path, SHAPE)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ConfigError, match=r"is not an index of weights"):
        locate_weights(tmp_path, SHAPE)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"tensors \d+ missing \("):
        locate_weights(tmp_path, SHAPE)


def test_files_that_the_index_does_not_list_are_left_alone(tmp_path: Path) -> None:
    write_released(tmp_path)
    save_file({"stranger": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    locate_weights(tmp_path, SHAPE)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"1 unknown \(stranger in adapter_model\.safetensors\)"):
        locate_weights(tmp_path, SHAPE)


SPOILED = [
    (False, f"{EXPERTS}.3.up_proj.weight", None, rf"1 missing \({EXPERTS}\.3\.up_proj\.weight\)"),
    (False, "model.norm.weight", lambda one: one[:-1], r"is \[63\], config.* \[64\]"),
    (True, f"{EXPERTS}.down_proj", None, r"8 missing .*experts\.0\.down_proj\.weight"),
    (True, f"{EXPERTS}.down_proj", lambda one: one[:-1], r"\[7, 64, 48\], .* \[8, 64, 48\]"),
    # As large as it should be, so that only its shape tells.
    (True, f"{EXPERTS}.gate_up_proj", lambda one: one.mT, r"64, 96\], config.* 96, 64\]"),
    (False, "model.norm.weight", lambda one: one.to(torch.uint8), r"1 quantised \(model.* U8"),
]  # fmt: skip


@pytest.mark.parametrize(("is_fused", "name", "new", "message"), SPOILED)
def test_tensor_that_does_not_fit_is_named_with_its_file(
    tmp_path: Path, is_fused: bool, name: str, new: object, message: str
) -> None:
    write_released(tmp_path, is_fused=is_fused)
    file_name = change(tmp_path, name, new)
    with pytest.raises(ConfigError, match=message) as caught:
        locate_weights(tmp_path, SHAPE)
    assert new is None or file_name in str(caught.value)


def test_tensor_that_is_stored_twice_is_named(tmp_path: Path) -> None:
    tensors = write_released(tmp_path, is_fused=True)
    name = f"{EXPERTS}.3.up_proj.weight"
    save_file({name: tensors[name]}, tmp_path / "more.safetensors")
    locate_weights(tmp_path, SHAPE)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match=rf"1 twice \({EXPERTS}\.3\.up_proj\.weight"):
        locate_weights(tmp_path, SHAPE)
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, tmp_path / "more.safetensors")
    with pytest.raises(ConfigError, match=r"1 twice \(model\.norm\.weight in more\.safetensors"):
        locate_weights(tmp_path, SHAPE)


def move_end(header: dict) -> None:
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 2


def forget_shape(header: dict) -> None:
    name = next(name for name in header if name != "__metadata__")
    del header[name]["shape"]


def use_float8(header: dict) -> None:
    name = next(name for name in header if name != "__metadata__")
    header[name]["dtype"] = "F8_E5M2"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (move_end, r"bytes, and as \w+ of shape .* needs"),
        (forget_shape, "header is damaged"),
        (lambda header: ["no object"], "header is damaged"),
        (use_float8, "has dtype F8_E5M2, which is none of"),
    ],
)
def test_damaged_header_is_refused_with_its_file(
    tmp_path: Path, edit: Callable[[dict], object], message: str
) -> None:
    write_released(tmp_path)
    edit_header(tmp_path, edit)
    with pytest.raises(ConfigError, match=rf"{FIRST} cannot be used: .*{message}"):
        locate_weights(tmp_path, SHAPE)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{" * 16])
def test_file_that_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_released(tmp_path)
    (tmp_path / FIRST).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{FIRST} cannot be used"):
        locate_weights(tmp_path, SHAPE)


def test_another_size_of_model_is_refused(tmp_path: Path) -> None:
    write_released(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown .* misshapen|misshapen"):
        locate_weights(tmp_path, replace(SHAPE, hidden_size=32))


def test_dry_run_names_what_is_wrong_with_the_weights_without_torch(
    tmp_path: Path, repository: Path
) -> None:
    write_released(tmp_path / "model")
    (tmp_path / "model" / FIRST).write_bytes((tmp_path / "model" / FIRST).read_bytes()[:-10])
    code = (
        "import sys; from hunyuan_train.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, code)"
    )
    command = [sys.executable, "-c", code, "train", "--dry_run", "--output_dir", "out"]
    data = ["--train_data_file", "data/tiny_train.jsonl"]
    finished = subprocess.run(
        [*command, "--model_name_or_path", str(tmp_path / "model"), *data],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.split() == ["False", "2"]
    assert "10 bytes are missing at its end; download it again" in " ".join(finished.stderr.split())


def test_a_damaged_export_is_not_downloaded_again(tmp_path: Path) -> None:
    write_released(tmp_path)
    (tmp_path / FIRST).write_bytes((tmp_path / FIRST).read_bytes()[:-10])
    with pytest.raises(ConfigError, match="missing at its end; download it again"):
        locate_weights(tmp_path, SHAPE)
    (tmp_path / EXPORT_MANIFEST).write_text('{"base": "/models/base"}')
    with pytest.raises(ConfigError, match="missing at its end; export it again"):
        locate_weights(tmp_path, SHAPE)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ConfigError, match=r"is not an index of weights .*; export it again"):
        locate_weights(tmp_path, SHAPE)

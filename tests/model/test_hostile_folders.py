"""A model folder that somebody made to deceive or to stall is refused by name, in a moment."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.registry import family_of, read_shape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.json_file import parse_json
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_header import read_header

SHAPE = replace(
    TINY,
    vocab_size=40,
    hidden_size=8,
    intermediate_size=4,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    num_experts=2,
    moe_topk=1,
    eos_token_id=3,
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_SECONDS = 5

Header = dict[str, Any]


def make_header() -> Header:
    """A true header of bfloat16 tensors, end to end."""
    header: Header = {}
    position = 0
    for name, tensor in released_tensors(SHAPE).items():
        offsets = [position, position + 2 * tensor.numel]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        position = offsets[1]
    return header


HEADER = make_header()
NAMES = list(HEADER)
NUM_BYTES = max(one["data_offsets"][1] for one in HEADER.values())


def make_config() -> dict[str, Any]:
    return family_of(SHAPE).native_config(SHAPE) | {"model_type": "hunyuan_v1_moe"}


def write_weights(path: Path, header: str, num_bytes: int = NUM_BYTES) -> None:
    encoded = header.encode("utf-8", "surrogatepass")
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(num_bytes))


def write_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_weights(folder / WEIGHTS, json.dumps(HEADER))
    (folder / CONFIG).write_text(json.dumps(make_config()))
    (folder / GENERATION).write_text(json.dumps({"eos_token_id": [3], "temperature": 0.7}))
    index = {"metadata": {}, "weight_map": dict.fromkeys(HEADER, WEIGHTS)}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "model")
    return tmp_path / "model"


def open_folder(folder: Path) -> None:
    """What every start does with a model folder."""
    locate_weights(folder, read_shape(folder))


def refuse(folder: Path, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        open_folder(folder)
    assert time.monotonic() - started < MAX_SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_the_folder_itself_is_good(folder: Path) -> None:
    open_folder(folder)


def edited(**changes: Any) -> str:
    """The header with other fields of one tensor in the middle."""
    header = json.loads(json.dumps(HEADER))
    header[NAMES[3]] |= changes
    return json.dumps(header)


def moved(first: int, second: int) -> str:
    """The header with the tensor in the middle moved by so many bytes."""
    start, stop = HEADER[NAMES[3]]["data_offsets"]
    return edited(data_offsets=[start + first, stop + second])


HEADERS = {
    "overlapping": (moved(-2, -2), "overlaps"),
    "a hole": (
        json.dumps({n: v for n, v in HEADER.items() if n != NAMES[3]}),
        f"bytes before {re.escape(NAMES[4])} belong to no tensor",
    ),
    "twice": (f'{json.dumps(HEADER)[:-1]}, "{NAMES[0]}": 1}}', "twice"),
    "a field twice": (moved(0, 0).replace('"dtype"', '"dtype": 1, "dtype"', 1), "'dtype' twice"),
    "float offsets": (moved(0, 0).replace("[0, ", "[0.0, ", 1), "whole"),
    "true as size": (edited(shape=[True]), "whole numbers"),
    "negative": (edited(data_offsets=[-2, 2]), "whole numbers"),
    "a huge shape": (edited(shape=[2**62] * 3), "more than any file holds"),
    "many huge sizes": (edited(shape=[2**62] * 200_000), "more than any file holds"),
    "offsets of three": (edited(data_offsets=[0, 1, 2]), "whole numbers"),
    "another field": (edited(extra=1), "needs dtype, shape, data_offsets"),
    "dtype as list": (edited(dtype=["BF16"]), r"dtype \['BF16'\]"),
    "no object": ('[["a", 1]]', "no JSON object"),
    "metadata as number": (json.dumps({"__metadata__": {"a": 1}} | HEADER), "must hold words"),
    "not a number": (json.dumps(HEADER | {"__metadata__": {"a": float("nan")}}), "NaN"),
    "deep": ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
    "surrogate": (json.dumps({"\ud800": HEADER[NAMES[0]]} | HEADER), "damaged"),
    "entry as word": (json.dumps(HEADER | {"a": "b"}), "a needs dtype"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_header_that_the_library_refuses_is_refused(folder: Path, kind: str) -> None:
    header, message = HEADERS[kind]
    write_weights(folder / WEIGHTS, header)
    refuse(folder, rf"{WEIGHTS} cannot be used: .*{message}")


def test_bytes_behind_the_last_tensor_are_refused(folder: Path) -> None:
    write_weights(folder / WEIGHTS, json.dumps(HEADER), NUM_BYTES + 7)
    refuse(folder, r"7 bytes behind .* belong to no tensor")


def test_large_headers_are_not_read(folder: Path) -> None:
    entry = json.dumps({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    many = ",".join(f'"tensor number {number:07d}": {entry}' for number in range(1_000_000))
    write_weights(folder / WEIGHTS, f"{{{many}}}", 0)
    refuse(folder, "its header takes ..,...,... bytes, and those of models take 16,777,216")


def test_more_tensors_than_the_model_has_end_the_reading(folder: Path) -> None:
    (folder / INDEX).unlink()
    header = {f"a{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(10_000)}
    for number in range(60):
        other = {f"{name}.{number}": entry for name, entry in header.items()}
        write_weights(folder / f"a{number}.safetensors", json.dumps(other), 0)
    refuse(folder, "10000 unknown")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nest(path: Path) -> None:
    path.write_text("[" * 10**6)


def fill(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, GENERATION, INDEX])
@pytest.mark.parametrize("spoil", [make_pipe, link_device, make_folder, nest, fill])
def test_file_that_is_none_is_refused(
    folder: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / name)
    refuse(folder, re.escape(name))


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a.bin", 7, None,
             ["a"], "..\\a.safetensors"]
)  # fmt: skip
def test_index_names_files_of_its_own_folder_only(folder: Path, name: object) -> None:
    (folder.parent / "other.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    index = {"weight_map": dict.fromkeys(HEADER, name)}
    (folder / INDEX).write_text(json.dumps(index))
    refuse(folder, "index")


WRONG: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                     "intermediate_size", "max_position_embeddings", "num_experts", "moe_topk")
        for value in (None, 0, -1, True, 1.0, "8", [], {}, 10**30)
    ),
    ({"num_hidden_layers": 10**8}, "num_hidden_layers"),
    ({"num_hidden_layers": 4096, "num_experts": 4096}, "num_experts"),
    ({"moe_topk": 999}, "moe_topk"),
    ({"moe_topk": [1, "x"]}, "moe_topk"),
    ({"moe_topk": [[1]]}, "moe_topk"),
    ({"moe_topk": [{}]}, "moe_topk"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_key_value_heads"),
    ({"head_dim": 3}, "head_dim"),
    ({"rope_parameters": "x"}, "rope_parameters"),
    ({"rope_parameters": ["x"]}, "rope_parameters"),
    ({"rope_parameters": None, "rope_scaling": "x"}, "rope_scaling"),
    ({"rope_parameters": None, "rope_theta": "abc"}, "rope_theta"),
    ({"rope_parameters": None, "rope_theta": 0}, "rope_theta"),
    ({"rope_parameters": {"rope_type": "dynamic", "alpha": "x"}}, "alpha"),
    ({"rope_parameters": {"rope_type": ["dynamic"]}}, "rope type"),
    # What other readers would compute instead, beside what is computed here.
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ({"rope_scaling": {"type": "dynamic", "alpha": 1000.0}}, "rope_scaling"),
    ({"rope_scaling": {"type": "dynamic", "alpha": "x"}}, "alpha"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"rope_scaling": []}, "rope_scaling"),
    ({"rope_scaling": ""}, "rope_scaling"),
    ({"rope_theta": 5e5}, "rope_theta"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": "10000.0"}, "rope_theta"),
    ({"rope_scaling": {"type": "default", "rope_theta": 5e5}}, "rope_theta"),
    ({"rope_parameters": {"rope_type": "default", "type": "yarn"}}, "type"),
    ({"rope_parameters": {"rope_type": "default", "alpha": 1000.0}}, "alpha"),
    ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "factor"),
    ({"rope_parameters": {"rope_type": "dynamic", "alpha": 9.0, "factor": 4.0}}, "factor"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"attention_head_dim": 64}, "attention_head_dim"),
    ({"num_local_experts": 3}, "num_local_experts"),
    ({"num_experts_per_tok": [2, 2]}, "num_experts_per_tok"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ({"quantization_config": {}}, "quantization_config"),
    ({"compression_config": {"format": "int8"}}, "compression_config"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"rms_norm_eps": None}, "rms_norm_eps"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"eos_token_id": 40}, "eos_token_id"),
    ({"pad_token_id": 1.5}, "pad_token_id"),
    ({"model_type": ["hunyuan"]}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"num_shared_expert": "1"}, "num_shared_expert"),
    ({"hidden_act": ["silu"]}, "hidden_act"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), WRONG)
def test_number_that_no_model_has_is_refused_by_its_field(
    folder: Path, change: dict[str, Any], field: str
) -> None:
    (folder / CONFIG).write_text(json.dumps(make_config() | change))
    refuse(folder, rf"{CONFIG} .*{field}")


ROPE = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}


@pytest.mark.parametrize(
    ("change", "alpha"),
    [
        # As the released A13B has it, as Transformers 5 writes that, and as our exports have it.
        ({"rope_theta": 10000.0, "rope_parameters": None,
          "rope_scaling": ROPE | {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                                  "mscale_all_dim": 1.0}}, 1000.0),
        ({"rope_parameters": ROPE | {"rope_type": "dynamic", "rope_theta": 10000.0,
                                     "beta_fast": 32, "mscale": 1.0}}, 1000.0),
        ({"rope_parameters": ROPE | {"rope_theta": 10000}, "rope_theta": 10000.0,
          "rope_scaling": ROPE | {"rope_type": "dynamic", "rope_theta": 10000.0}}, 1000.0),
        ({"rope_theta": 10000.0, "rope_scaling": None}, None),
        ({"rope_scaling": {}}, None),
        ({"rope_parameters": None}, None),
        ({"quantization_config": None, "attention_head_dim": 4}, None),
        ({"moe_topk": [1], "num_experts_per_tok": 1}, None),
    ],
)  # fmt: skip
def test_words_of_several_versions_that_agree_are_read(
    folder: Path, change: dict[str, Any], alpha: float | None
) -> None:
    (folder / CONFIG).write_text(json.dumps(make_config() | change))
    open_folder(folder)
    shape = read_shape(folder)
    width = SHAPE.head_dim
    stretched = 10000.0 if alpha is None else 10000.0 * alpha ** (width / (width - 2))
    assert shape.rope_theta == stretched
    assert shape.context_length == (SHAPE.context_length if alpha is None else 2**18)


def add_a_stranger(weight_map: dict[str, str]) -> None:
    weight_map["model.stranger"] = WEIGHTS


def name_another_file(weight_map: dict[str, str]) -> None:
    weight_map[NAMES[3]] = "other.safetensors"


def leave_one_out(weight_map: dict[str, str]) -> None:
    del weight_map[NAMES[3]]


@pytest.mark.parametrize("edit", [add_a_stranger, name_another_file, leave_one_out])
def test_an_index_that_differs_from_the_headers_is_refused(
    folder: Path, edit: Callable[[dict[str, str]], None]
) -> None:
    write_weights(folder / "other.safetensors", "{}", 0)
    weight_map = dict.fromkeys(HEADER, WEIGHTS)
    edit(weight_map)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refuse(folder, rf"{INDEX} and the headers .* differ: it lists .*({NAMES[3]}|model\.stranger)")


NOT_JSON = ['{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', '{"a": 1, "a": 2}', "[]", "",
            "\ufeff{}", '{"a": ' + "9" * 5000 + "}"]  # fmt: skip


@pytest.mark.parametrize("text", NOT_JSON)
@pytest.mark.parametrize("name", [CONFIG, GENERATION, INDEX])
def test_json_that_readers_take_differently_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    refuse(folder, name)


@pytest.mark.parametrize(
    "values",
    [{"eos_token_id": "x"}, {"eos_token_id": [3, None, "x"]}, {"eos_token_id": [[3]]},
     {"pad_token_id": True}, {"temperature": "hot"}, {"top_k": []}],
)  # fmt: skip
def test_broken_generation_config_is_refused(folder: Path, values: dict[str, Any]) -> None:
    (folder / GENERATION).write_text(json.dumps(values))
    refuse(folder, rf"{GENERATION} has \w+ = ")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.integers(-2, 9), max_size=3), st.just({}),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(make_config())), value=VALUES)
def test_any_value_of_any_field_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("m") / "model"
    write_folder(folder)
    (folder / CONFIG).write_text(json.dumps(make_config() | {name: value}))
    with suppress(ConfigError):
        open_folder(folder)


@st.composite
def mutated_headers(draw: st.DrawFn) -> str:
    """The true header with a few of its parts replaced, taken away, added or spelled otherwise."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header) or ["x"]))
        entry = header.get(name)
        kind = draw(st.sampled_from(["drop", "copy", "field", "offset", "value", "metadata"]))
        if kind == "drop":
            header.pop(name, None)
        elif kind == "copy":
            header[draw(st.text(max_size=3))] = entry
        elif kind == "metadata":
            header["__metadata__"] = draw(st.one_of(VALUES, st.just({"format": "pt"})))
        elif kind == "value" or not isinstance(entry, dict):
            header[name] = draw(VALUES)
        elif kind == "field":
            header[name] = entry | {draw(st.sampled_from(sorted(entry) or ["x"])): draw(VALUES)}
        elif isinstance(entry.get("data_offsets"), list):
            index, change = draw(st.integers(0, 1)), draw(st.sampled_from([-2, -1, 0.0, 1, 2]))
            offsets = list(entry["data_offsets"])
            if index < len(offsets):
                offsets[index] += change
            header[name] = entry | {"data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=draw(st.booleans()))
    cut = draw(st.integers(0, 40))
    return text[: len(text) - cut] if cut > 30 else text


@settings(max_examples=300, deadline=None)
@given(header=mutated_headers(), num_lost=st.sampled_from([0, 0, 0, -2, 1]))
def test_what_the_library_refuses_is_never_read(
    tmp_path_factory: pytest.TempPathFactory, header: str, num_lost: int
) -> None:
    file = tmp_path_factory.mktemp("m") / WEIGHTS
    write_weights(file, header, NUM_BYTES - num_lost)
    try:
        library = dict(safetensors.deserialize(file.read_bytes()))
    except safetensors.SafetensorError:
        library = None
    try:
        ours = read_header(file)
    except ValueError:
        return
    assert library is not None
    assert {name: list(one.shape) for name, one in ours.items()} == {
        name: one["shape"] for name, one in library.items()
    }


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_a_value_error(content: bytes) -> None:
    try:
        parse_json(content)
    except ValueError:
        return
    json.loads(content)

"""Codes of quantised experts are kept for the next start, and nothing but this base's are used."""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.expert_cache import CachedExperts
from hunyuan_train.model.expert_codes import QuantisedOnReading
from hunyuan_train.model.expert_formats import GENTLEST_FIRST, scheme_of
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.model.weights import SeededWeights, WeightSource
from tests.batches import SHAPE

EXPERTS = [one for one in released_tensors(SHAPE).values() if one.kind is Kind.EXPERT]
FORMS = GENTLEST_FIRST[1:]
ONE, OTHER = SeededWeights(1, 0.02), SeededWeights(2, 0.02)


@dataclass
class Counting:
    """A base that counts the experts that are read of it."""

    source: WeightSource
    read_names: list[str] = field(default_factory=list)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        self.read_names.append(tensor.name)
        return self.source.read(tensor, start, stop)


def start(
    cache: Path,
    kept: str = "nf4",
    *,
    source: WeightSource = ONE,
    identity: str = "one",
    tensors: list[StoredTensor] = EXPERTS,
) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """What a rank of a run does at its start: its codes, and what it read of the base."""
    counting = Counting(source)
    fresh = QuantisedOnReading(counting, scheme_of(kept, SHAPE), torch.bfloat16)
    codes = CachedExperts(fresh, cache, (identity, "bfloat16"))
    codes.compare(tensors)
    found = [codes.read_experts(one) for one in tensors]
    codes.keep([(one, *parts) for one, parts in zip(tensors, found, strict=True)])
    return found, counting.read_names


def made_of(source: WeightSource, kept: str, tensors: list[StoredTensor] = EXPERTS):
    fresh = QuantisedOnReading(source, scheme_of(kept, SHAPE), torch.bfloat16)
    return [fresh.read_experts(one) for one in tensors]


def check_same(found: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    for one, other in zip(found, expected, strict=True):
        for part, wanted in zip(one, other, strict=True):
            assert part.dtype == wanted.dtype
            assert torch.equal(part.view(torch.uint8), wanted.view(torch.uint8))


def num_compared(tensors: list[StoredTensor]) -> int:
    return len(tensors[:: len(tensors) // 32 + 1])


@pytest.mark.parametrize("kept", FORMS)
def test_the_next_start_reads_the_same_codes_from_the_cache(tmp_path: Path, kept: str) -> None:
    first, read = start(tmp_path, kept)
    assert len(read) == len(EXPERTS)
    second, read = start(tmp_path, kept)
    assert len(read) == num_compared(EXPERTS) < len(EXPERTS)
    check_same(first, made_of(ONE, kept))
    check_same(second, first)
    [file] = tmp_path.glob("*.experts/*.safetensors")
    assert len(load_file(file)) == 2 * len(EXPERTS) + 1  # a plain file of safetensors


def test_another_split_reads_what_ranks_have_kept(tmp_path: Path) -> None:
    half = len(EXPERTS) // 2
    for part in (EXPERTS[:half], EXPERTS[half:]):
        start(tmp_path, tensors=part)
    found, read = start(tmp_path)
    assert len(read) == num_compared(EXPERTS)
    check_same(found, made_of(ONE, "nf4"))
    assert len(list(tmp_path.glob("*.experts/*.safetensors"))) == 2


def test_another_base_form_or_dtype_has_a_folder_of_its_own(tmp_path: Path) -> None:
    start(tmp_path)
    found, read = start(tmp_path, source=OTHER, identity="other")
    assert len(read) == len(EXPERTS)
    check_same(found, made_of(OTHER, "nf4"))
    _, read = start(tmp_path, "int4")
    assert len(read) == len(EXPERTS)
    assert len(list(tmp_path.glob("*.experts"))) == 3


def list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is warned of; what else is said depends on what other tests have asked the log for."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_flipped_byte_is_found_and_its_expert_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    [file] = tmp_path.glob("*.experts/*.safetensors")
    flipped = EXPERTS[5]
    position = read_header(file)[flipped.name].byte_offset + 7
    content = bytearray(file.read_bytes())
    content[position] ^= 16
    file.write_bytes(content)
    found, read = start(tmp_path)
    assert flipped.name in read
    assert len(read) <= num_compared(EXPERTS) + 1
    check_same(found, made_of(ONE, "nf4"))
    [warning] = list_warnings(caplog)
    assert f"is damaged, or of another base: {flipped.name}" in warning
    caplog.clear()
    found, read = start(tmp_path)  # it was written anew
    assert len(read) == num_compared(EXPERTS)
    assert not list_warnings(caplog)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_file_cut_short_is_made_anew(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    [file] = tmp_path.glob("*.experts/*.safetensors")
    file.write_bytes(file.read_bytes()[:length])
    found, read = start(tmp_path)
    assert len(read) == len(EXPERTS)
    check_same(found, made_of(ONE, "nf4"))
    assert "is damaged" in caplog.text
    _, read = start(tmp_path)
    assert len(read) == num_compared(EXPERTS)


def test_files_of_another_base_in_its_place_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, source=OTHER, identity="other")
    [wrong] = tmp_path.glob("*.experts")
    start(tmp_path)
    [right] = set(tmp_path.glob("*.experts")) - {wrong}
    shutil.rmtree(right)
    wrong.rename(right)
    found, _ = start(tmp_path)
    check_same(found, made_of(ONE, "nf4"))
    assert "is damaged, or of another base" in caplog.text


def test_a_base_that_changed_unseen_by_its_identity_is_found_by_comparing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, source=OTHER)
    found, read = start(tmp_path)
    assert len(read) == len(EXPERTS) + 1
    check_same(found, made_of(ONE, "nf4"))
    assert "holds experts of another base" in caplog.text
    caplog.clear()
    _, read = start(tmp_path)
    assert len(read) == num_compared(EXPERTS)
    assert not list_warnings(caplog)


def test_a_disk_that_takes_nothing_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    found, _ = start(blocked)
    check_same(found, made_of(ONE, "nf4"))
    assert "cannot be kept" in caplog.text
    assert "set cache_dir to another disk" in caplog.text

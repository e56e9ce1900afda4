"""Faults that are planted into a run, and that its rehearsal must find."""

import pytest

from tests.rehearsal.rehearsed import rehearsed

pytestmark = pytest.mark.slow
PLANTED = "tests.rehearsal.planted"
FILES = "tests/rehearsal/planted"
LORA = ("--recipe", "lora", "--max_seq_length", "1024", "--gradient_accumulation_steps", "1")


@pytest.fixture(scope="module")
def sound():
    return rehearsed(*LORA)


def test_a_sound_run_has_no_faults(sound):
    assert sound.seen["errors"] == []
    assert sound.seen["leaks"] == {}
    assert all("router.py" in line for line in sound.seen["float32_products"])


def test_a_cpu_tensor_in_the_loss_is_an_error_with_its_line():
    [error] = rehearsed(*LORA, hook=f"{PLANTED}.cpu_tensor_in_the_loss").seen["errors"]
    assert error["kind"] == "device"
    assert error["line"] == f"{FILES}/cpu_tensor_in_the_loss.py:11 masked_losses"


def test_an_item_in_a_layer_is_a_wait_of_every_layer():
    waits = rehearsed(*LORA, hook=f"{PLANTED}.item_in_a_layer").seen["step"]["waits"]
    mine = [one for one in waits if one["line"].startswith(f"{FILES}/item_in_a_layer.py:9 look")]
    assert {one["kind"] for one in mine} == {"item"}
    assert {one["phase"]: one["count"] for one in mine}["forward"] == 2


def test_a_leaked_activation_is_named_with_its_bytes():
    leaks = rehearsed(*LORA, hook=f"{PLANTED}.leaked_activation").seen["leaks"]
    [(line, num_bytes)] = leaks.items()
    assert num_bytes == 1024 * 4096 * 2  # hidden states of a step, in bfloat16
    assert "modeling_hunyuan_v1_moe.py" in line


def test_float32_among_bfloat16_is_named():
    products = rehearsed(*LORA, hook=f"{PLANTED}.float32_attention").seen["float32_products"]
    assert any(one.startswith(f"{FILES}/float32_attention.py:11 run_in") for one in products)

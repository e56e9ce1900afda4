"""Which forms of frozen experts go with which runs, and which one is chosen."""

from dataclasses import replace
from functools import partial

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.planner.estimate import estimate_run
from hunyuan_train.planner.gentlest import describe_form, resolve_gentlest
from hunyuan_train.planner.machine import Hardware
from tests.config.resolved import resolve_flags

CPU = Machine(num_gpus=0, num_cores=2)
TINY = PRESETS["tiny"]
LORA = ["--use_lora", "--lora_rank", "8"]


def resolve_tiny(*flags: str, shape: ModelShape = TINY):
    return resolve_flags(["--recipe", "tiny", "--num_processes", "1", *flags], CPU, shape=shape)


def test_quantised_experts_bring_the_layer_that_computes_with_them():
    run = resolve_tiny(*LORA, "--expert_weights", "nf4")
    assert run.splits_experts
    assert run.expert_size == 1
    assert not resolve_tiny(*LORA).splits_experts


@pytest.mark.parametrize(
    ("flags", "shape", "words"),
    [
        (["--expert_weights", "nf4"], TINY, r"nf4 and use_lora is false.*add --use_lora"),
        (
            [*LORA, "--expert_weights", "fp8", "--deepspeed", "ds_configs/zero3.json"],
            TINY,
            "no enabled expert_parallel section",
        ),
        ([*LORA, "--expert_weights", "fp8"], PRESETS["tiny-dense"], "no routed experts"),
        ([*LORA, "--expert_weights", "base"], TINY, "has them in full precision"),
        ([*LORA, "--expert_weights", "int4"], replace(TINY, stored_as="tensor"), "tensor already"),
        ([], replace(TINY, stored_as="gptq:128"), "adapters only"),
        (
            [*LORA, "--expert_weights", "nf4", "--use_dora", "--lora_target_modules", "experts"],
            TINY,
            "use_dora",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_paragraph(
    flags: list[str], shape: ModelShape, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_tiny(*flags, shape=shape)


def test_a_quantised_base_is_kept_as_it_is():
    run = resolve_tiny(*LORA, shape=replace(TINY, stored_as="channel"))
    assert run.config.model.expert_weights == "base"
    stored = replace(TINY, stored_as="channel")
    whole = resolve_tiny(*LORA, "--expert_weights", "bf16", shape=stored)
    assert whole.config.model.expert_weights == "bf16"


@pytest.mark.parametrize(
    ("model", "num_gpus", "gigabytes", "flags", "form"),
    [
        ("a13b", 8, 80, [], "bf16"),
        ("a13b", 2, 80, [], "fp8"),
        ("a13b", 1, 80, [], "nf4"),
        ("a13b", 1, 80, ["--expert_weights", "int4"], "int4"),
        ("a13b", 1, 24, [], "int4"),  # nothing fits: the refusal is about the smallest form
        ("hy3", 8, 80, [], "fp8"),
        ("hy3", 8, 48, [], "nf4"),
    ],
)
def test_adapters_get_the_gentlest_form_that_fits_and_are_told(
    model: str, num_gpus: int, gigabytes: int, flags: list[str], form: str
) -> None:
    run = resolve_adapters(model, num_gpus, gigabytes, *flags)
    assert run.config.model.expert_weights == form
    said = describe_form(run)
    assert f"kept in {form}; --expert_weights bf16" in said if form != "bf16" else not said


@pytest.mark.parametrize("form", ["nf4", "int4"])
def test_adapters_of_hy3_take_at_most_45_gib_of_each_of_eight_gpus_in_4_bits(form: str) -> None:
    plan = estimate_run(resolve_adapters("hy3", 8, 80, "--expert_weights", form), Hardware())
    assert plan.fits
    assert plan.memory.device_peak <= 45 * 2**30


def resolve_adapters(model: str, num_gpus: int, gigabytes: int, *flags: str) -> ResolvedRun:
    machine = Machine(num_gpus=num_gpus, num_cores=32, gpu_memory=gigabytes * 10**9)
    words = ["--recipe", "lora", "--model_name_or_path", model, *flags]
    there = partial(resolve, shape=PRESETS[model], machine=machine, known=SETTINGS_ALONE)
    return resolve_gentlest(load_config(words), there, Hardware())

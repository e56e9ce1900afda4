import json

import pytest

from hunyuan_train.config.rules import engine_file
from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import DS_CONFIGS
from tests.config.resolved import EIGHT_GPUS, TWO_CORES, resolve_flags


def changed(tmp_path, **changes):
    """A copy of zero3_ep.json with some top-level keys changed."""
    content = json.loads((DS_CONFIGS / "zero3_ep.json").read_text())
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(content | changes))
    return ["--deepspeed", str(path)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--expert_parallel_size 2 --deepspeed ds_configs/zero3.json",
            "zero3.json has no enabled expert_parallel section; use --deepspeed .*zero3_ep.json",
        ),
        (
            "--optimizer offload --deepspeed ds_configs/zero3_ep.json",
            "optimizer is offload, but .*zero3_ep.json does not offload",
        ),
        (
            "--optimizer adamw --deepspeed ds_configs/zero3_ep_offload.json",
            "optimizer is adamw, but .*zero3_ep_offload.json offloads",
        ),
        ("--use_lora --deepspeed ds_configs/zero2.json", "use_lora is true, .* ZeRO stage 2"),
    ],
)
def test_a_file_that_does_not_go_with_the_run_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(flags)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stage": 0}, "zero_optimization.stage to 0; it must be 2 or 3"),
        ({"stage": 2}, "expert_parallel_size is 2, but .* asks for ZeRO stage 2; below stage 3"),
        (
            {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
            "sets stage3_gather_16bit_weights_on_model_save, which the engine cannot do",
        ),
    ],
)
def test_what_the_engine_gets_wrong_with_split_experts_is_refused(tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(changed(tmp_path, zero_optimization=section))


@pytest.mark.parametrize("name", ["sequence_parallel_size", "data_parallel_size"])
def test_the_engine_may_not_share_rows_itself(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"ours.json sets {name}, .* --sequence_parallel_size$"):
        resolve_flags(changed(tmp_path, **{name: 2}))


def test_the_global_batch_of_the_file_is_that_of_all_hosts(tmp_path):
    flags = changed(tmp_path, train_batch_size=4)
    resolve_flags(flags, slots=(2, 2))
    with pytest.raises(ConfigError, match="train_batch_size to 4, but the global batch size of"):
        resolve_flags(flags, TWO_CORES)


@pytest.mark.parametrize(
    ("name", "value"), [("async_split_plan", True), ("combine_impl", "fused_weighted_sum")]
)
def test_kernels_of_cuda_are_refused_by_name_without_a_gpu(tmp_path, name, value):
    section = {"enabled": True, "autoep_size": "auto", "preset_model": "auto", name: value}
    flags = [*changed(tmp_path, expert_parallel=section), "--expert_parallel_size", "2"]
    with pytest.raises(ConfigError, match=f"sets expert_parallel.{name} to .*runs on GPUs only"):
        resolve_flags(flags, TWO_CORES)


def with_deepep(tmp_path, **section):
    engine = {"enabled": True, "autoep_size": "auto", "preset_model": "auto"}
    section = engine | {"comm_backend": "deepep"} | section
    return [*changed(tmp_path, expert_parallel=section), "--expert_parallel_size", "2"]


@pytest.mark.parametrize(
    ("flags", "section", "machine", "message"),
    [
        ([], {}, TWO_CORES, "which runs on GPUs only, and this machine has none; delete it"),
        (["--bf16", "false"], {}, EIGHT_GPUS, "bf16 is false; DeepEP sends bfloat16 only"),
        (
            [],
            {"combine_impl": "fused_weighted_sum"},
            EIGHT_GPUS,
            "DeepEP sums experts' outputs itself: delete one of the two",
        ),
        ([], {}, EIGHT_GPUS, "the package deep_ep is not installed; install it on every host"),
    ],
)
def test_deepep_is_refused_by_name_where_it_cannot_run(tmp_path, flags, section, machine, message):
    with pytest.raises(ConfigError, match='comm_backend to "deepep"') as caught:
        resolve_flags([*with_deepep(tmp_path, **section), *flags], machine)
    assert message in str(caught.value)


def test_deepep_is_taken_where_it_is_installed_and_means_nothing_on_one_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_file, "DEEPEP_PACKAGE", "json")
    assert engine_file.uses_deepep(resolve_flags(with_deepep(tmp_path), EIGHT_GPUS))
    alone = [*with_deepep(tmp_path)[:2], "--expert_parallel_size", "1"]
    assert not engine_file.uses_deepep(resolve_flags(alone, TWO_CORES))

import json
from copy import deepcopy
from pathlib import Path

import pytest

from hunyuan_train.config.deepspeed_config import build_deepspeed_config
from hunyuan_train.config.deepspeed_file import read_deepspeed_file
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import DS_CONFIGS
from tests.config.resolved import resolve_flags


def run_with(
    path: Path | str, *flags: str, expert_size: int = 2, num_ranks: int = 2
) -> ResolvedRun:
    """A run by a DeepSpeed file, before any rule is checked."""
    return resolve_flags(
        ["--deepspeed", str(path), "--expert_parallel_size", str(expert_size), *flags],
        Machine(num_gpus=0, num_cores=num_ranks),
        slots=(num_ranks,),
        known=(),
    )


def write(folder: Path, **changes: object) -> Path:
    """A copy of zero3_ep.json with some top-level keys changed."""
    content = json.loads((DS_CONFIGS / "zero3_ep.json").read_text()) | changes
    path = folder / "ds.json"
    path.write_text(json.dumps(content))
    return path


def test_the_runs_own_numbers_are_filled_in():
    run = run_with(
        DS_CONFIGS / "zero3_ep.json",
        *("--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "5"),
        *("--max_grad_norm", "0.5", "--bf16"),
        num_ranks=4,
    )
    filled = build_deepspeed_config(run)
    assert filled["train_batch_size"] == 60
    assert filled["train_micro_batch_size_per_gpu"] == 3
    assert filled["gradient_accumulation_steps"] == 5
    assert filled["gradient_clipping"] == 0.5
    assert filled["bf16"] == {"enabled": True}
    assert filled["expert_parallel"]["autoep_size"] == 2
    assert filled["expert_parallel"]["preset_model"] == "hunyuan_v1_moe"
    assert filled["zero_optimization"]["stage"] == 3


def expert_section(path: Path, *, num_gpus: int) -> dict[str, object]:
    run = resolve_flags(
        ["--deepspeed", str(path), "--expert_parallel_size", "2"],
        Machine(num_gpus=num_gpus, num_cores=2),
        slots=(2,),
        known=(),
    )
    return build_deepspeed_config(run)["expert_parallel"]


def test_on_gpus_the_engines_faster_ways_are_on_and_a_file_may_choose_others(tmp_path):
    fast = {"async_split_plan": True, "combine_impl": "fused_weighted_sum"}
    shipped = expert_section(DS_CONFIGS / "zero3_ep.json", num_gpus=2)
    assert shipped.items() >= fast.items()
    on_cpu = expert_section(DS_CONFIGS / "zero3_ep.json", num_gpus=0)
    assert not fast.keys() & on_cpu.keys()
    section = {"enabled": True, "autoep_size": "auto", "preset_model": "auto"}
    plain = write(tmp_path, expert_parallel=section | {"combine_impl": "weighted_sum"})
    assert expert_section(plain, num_gpus=2)["combine_impl"] == "weighted_sum"
    deepep = write(tmp_path, expert_parallel=section | {"comm_backend": "deepep"})
    assert not fast.keys() & expert_section(deepep, num_gpus=2).keys()


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_file_we_ship_is_complete_once_filled(path):
    filled = build_deepspeed_config(run_with(path))
    assert "auto" not in json.dumps(filled).replace("autoep_size", "")
    assert ("expert_parallel" in filled) == ("ep" in path.stem)
    assert ("offload_optimizer" in filled["zero_optimization"]) == ("offload" in path.stem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8},
            "sets train_micro_batch_size_per_gpu to 8, but per_device_train_batch_size of this run "
            'is 1; write "auto" there, or change the run',
        ),
        (
            {"gradient_clipping": 0.1},
            "gradient_clipping to 0.1, but max_grad_norm of this run is 1",
        ),
        ({"train_batch_size": 256}, "train_batch_size to 256, but the global batch size .* is 2"),
        ({"bf16": {"enabled": True}}, "bf16.enabled to true, but bf16 of this run is false"),
        ({"fp16": {"enabled": True}}, "fp16.enabled to true, but fp16 of this run is false"),
        ({"bf16": True}, "sets bf16 to true; it is a section"),
        (
            {"expert_parallel": {"enabled": True, "autoep_size": 8}},
            "expert_parallel.autoep_size to 8, but expert_parallel_size of this run is 2",
        ),
        (
            {"expert_parallel": {"enabled": True, "preset_model": "mixtral"}},
            'preset_model to "mixtral", but the model\'s family of this run is "hunyuan_v1_moe"',
        ),
        ({"zero_optimization": 3}, "sets zero_optimization to 3; it is a section"),
        ({"zero_optimization": {"stage": "auto"}}, 'stage to "auto"; it must be 2 or 3'),
        ({"steps_per_print": "auto"}, 'sets steps_per_print to "auto", which nothing fills'),
    ],
)
def test_a_number_that_differs_from_the_run_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_deepspeed_config(run_with(write(tmp_path, **changes)))


def test_the_same_number_written_out_is_no_conflict(tmp_path):
    path = write(
        tmp_path, train_micro_batch_size_per_gpu=1, gradient_clipping=1, train_batch_size=2
    )
    assert build_deepspeed_config(run_with(path))


def test_keys_that_are_not_ours_pass_through_and_hugging_faces_auto_sizes_are_left_out(tmp_path):
    section = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    path = write(tmp_path, zero_optimization=section, wall_clock_breakdown=True, nested={"a": [1]})
    filled = build_deepspeed_config(run_with(path))
    assert filled["zero_optimization"] == {"stage": 3}
    assert filled["wall_clock_breakdown"] is True
    assert filled["nested"] == {"a": [1]}


@pytest.mark.parametrize(
    ("section", "flags"), [("optimizer", "--learning_rate"), ("scheduler", "--lr_scheduler_type")]
)
def test_an_optimizer_or_scheduler_of_the_files_own_is_refused(tmp_path, section, flags):
    with pytest.raises(ConfigError, match=rf"has a section {section}.*{flags}"):
        read_deepspeed_file(str(write(tmp_path, **{section: {"type": "AdamW"}})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; choose ds_configs/zero2.json, ds_configs/zero3.json"),
        ("{", "is not a JSON file"),
        ("[]", "holds no JSON object"),
        ('{"a": ' * 100_000, "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' * 300 + "1" + "}" * 300, "nested more than 16 levels deep"),
        ('{"a": [' * 20 + "1" + "]}" * 20, "nested more than 16 levels deep"),
        ('{"a": 1, "a": 2}', "it gives 'a' twice"),
        (" " * 2_000_000, "it has more than 1,000,000 bytes"),
        ("9" * 5_000, "is not a JSON file"),
    ],
)
def test_a_file_that_is_not_there_or_not_json_is_refused(tmp_path, text, message):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_deepspeed_file(str(path))


@pytest.mark.parametrize("size", ["many", [1], None, {}, -1, "1e400", 10**400, "nan"])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    section = {"stage": 3, "sub_group_size": size}
    message = r"sets zero_optimization.sub_group_size to .*; it takes a number from 0 to"
    with pytest.raises(ConfigError, match=message):
        read_deepspeed_file(str(write(tmp_path, zero_optimization=section)))


@pytest.mark.parametrize("path", ["/dev/zero", "/"])
def test_what_is_no_file_is_not_read(path):
    with pytest.raises(ConfigError, match=f"deepspeed is {path}, which is not a JSON file"):
        read_deepspeed_file(path)


def test_building_leaves_the_file_that_was_read_untouched():
    run = run_with(DS_CONFIGS / "zero3_ep.json")
    before = deepcopy(run.engine)
    build_deepspeed_config(run)
    assert run.engine == before

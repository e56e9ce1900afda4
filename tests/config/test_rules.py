import json

import pytest

from hunyuan_train.config import rules
from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import Machine, resolve_config
from hunyuan_train.config.rules import check_config, check_experts_divide, needle_lengths
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY
from hunyuan_train.shipped import DS_CONFIGS, RECIPES

EIGHT_GPUS = Machine(num_gpus=8, num_cores=64)
TWO_CORES = Machine(num_gpus=0, num_cores=2)


def check_flags(flags, machine=TWO_CORES, shape=TINY):
    arguments = flags.split() if isinstance(flags, str) else flags
    config = resolve_config(load_config(arguments), machine=machine, shape=shape)
    check_config(config, machine=machine, shape=shape)


def test_the_defaults_and_the_recipes_break_no_rule():
    check_flags("")
    for recipe in RECIPES.glob("*.yaml"):
        check_flags(["--recipe", str(recipe)], EIGHT_GPUS, shape=A13B)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 6, 8, 24, 64, 128])
def test_experts_may_be_split_over_any_divisor_of_their_number_and_the_processes(num_processes):
    fitting = [size for size in range(1, 65) if not 64 % size and not num_processes % size]
    for size in range(1, 130):
        if size in fitting:
            check_experts_divide(size, num_experts=64, num_processes=num_processes)
            continue
        with pytest.raises(ConfigError, match=f"set {' or '.join(map(str, fitting))}$"):
            check_experts_divide(size, num_experts=64, num_processes=num_processes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bf16 --fp16", "bf16 and fp16 are both true; a run has one precision: drop --fp16"),
        ("--fp16", "fp16 is true; .* overflows in float16: use --bf16, or --bf16 false"),
        ("--min_lr 0.01", "min_lr is 0.01, above learning_rate 1e-05; min_lr is the absolute rate"),
        (
            "--min_lr 1e-6 --lr_scheduler_type linear",
            "min_lr is 1e-06, which the schedule linear does not reach",
        ),
        ("--max_steps 10 --warmup_steps 10", "warmup_steps is 10 and max_steps 10"),
        ("--eval_steps 5", "eval_steps is 5, but there is nothing to evaluate on"),
        ("--save_best --eval_fraction 0.1", "save_best is true, but eval_steps is 0"),
        ("--lora_rank 8", "lora settings are given but use_lora is false"),
        ("--use_flash_attn", "use_flash_attn is true, but there is no GPU"),
        ("--num_processes 3", "num_processes is 3, but this machine has 2 cores"),
        (
            "--expert_parallel_size 3",
            "expert_parallel_size is 3; it must divide the model's 16 experts and num_processes, "
            "which is 2: set 1 or 2",
        ),
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
        ("--optimizer lean --bf16 false", "bf16 is false; .* use --bf16, or --optimizer adamw"),
        ("--optimizer lean", "optimizer is lean and bf16 is false"),  # as it is on a CPU
        ("--optimizer lean --bf16 --use_lora", "use_lora is true; .* use --optimizer adamw"),
        (
            "--optimizer lean --bf16 --deepspeed ds_configs/zero3_ep_offload.json",
            "optimizer is lean, but .*zero3_ep_offload.json offloads",
        ),
    ],
)
def test_a_broken_rule_is_explained(flags, message):
    with pytest.raises(ConfigError, match=message):
        check_flags(flags)


def test_two_processes_on_one_core_are_refused():
    with pytest.raises(ConfigError, match="num_processes is 2, but this machine has 1 core and"):
        check_flags("--num_processes 2", Machine(num_gpus=0, num_cores=1))


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="num_processes is 16, but this machine has 8 GPUs"):
        check_flags("--num_processes 16", EIGHT_GPUS)


def test_missing_kernels_and_trackers_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="flash-attn is not installed; install it with `pip"):
        check_flags("--use_flash_attn", EIGHT_GPUS)
    with pytest.raises(
        ConfigError, match="report_to is wandb, and wandb is not installed: `pip install"
    ):
        check_flags("--report_to wandb")


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
    content = json.loads((DS_CONFIGS / "zero3_ep.json").read_text())
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content | {"zero_optimization": section}))
    with pytest.raises(ConfigError, match=message):
        check_flags(["--deepspeed", str(path)])


def test_divisors_are_those_that_fit_model_and_machine():
    with pytest.raises(ConfigError, match=r"set 1 or 2$"):
        rules.check_experts_divide(4, num_experts=64, num_processes=6)
    rules.check_experts_divide(8, num_experts=64, num_processes=8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_target_modules", "gate_proj"], "lora_target_modules is 'gate_proj'"),
        (["--lora_target_modules", "experts", "--lora_rank", "12"], "a multiple of 8"),
        (["--lora_target_modules", "all", "--lora_dropout", "0.1"], "leave experts out"),
        (["--lora_target_modules", "shared_mlp", "--use_dora"], "leave shared_mlp out"),
        (["--freeze_router"], "freezes everything but the adapters"),
        (
            ["--lora_target_modules", "experts", "--deepspeed", "ds_configs/zero3.json"],
            "zero3_ep.json",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        check_flags(["--use_lora", *flags])


def file_with(tmp_path, *, zero=None, bf16=None):
    content = json.loads((DS_CONFIGS / "zero3.json").read_text())
    content["zero_optimization"] |= zero or {}
    content["bf16"] |= bf16 or {}
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    return f"--expert_parallel_size 1 --deepspeed {path}"


def test_bfloat16_masters_are_refused_where_updates_would_round_away(tmp_path):
    flags = file_with(tmp_path, bf16={"bf16_master_weights_and_grads": True})
    check_flags(f"{flags} --bf16 --optimizer lean")
    with pytest.raises(ConfigError, match="round away almost whole: use --optimizer lean"):
        check_flags(f"{flags} --bf16 --optimizer adamw")


def test_lean_with_what_contradicts_it_in_the_file_is_refused(tmp_path):
    flags = file_with(tmp_path, bf16={"bf16_master_weights_and_grads": False})
    with pytest.raises(ConfigError, match="but optimizer lean of this run is true"):
        check_flags(f"{flags} --bf16 --optimizer lean")
    flags = file_with(tmp_path, zero={"offload_param": {"device": "cpu"}})
    with pytest.raises(ConfigError, match="offloads the weights"):
        check_flags(f"{flags} --bf16 --optimizer lean")


EVALUATED = "--eval_data_file data/tiny_eval.jsonl --eval_steps 5 "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--report_to wandb,neptune", "report_to is wandb,neptune; give wandb, tensorboard"),
        ("--eval_generate 8", "eval_generate is 8, but there is nothing to evaluate on"),
        ("--save_best", "save_best is True, but there is nothing to evaluate on"),
        (
            "--eval_data_file data/tiny_eval.jsonl --early_stopping_patience 2",
            "there is one evaluation only, at the end; set --eval_steps",
        ),
        (EVALUATED + "--metric_for_best_model loss", "it must begin with one of eval_loss"),
        (EVALUATED + "--metric_for_best_model eval_set_f1", "with --eval_generate 64"),
        ("--freeze_router --router_guardian freeze_router", "use --router_guardian warn"),
        ("--profile 9-3", "profile is 9-3; name a step or several in a row, such as 10-12"),
    ],
)
def test_what_is_to_be_seen_of_a_run_is_checked_before_it(flags, message):
    with pytest.raises(ConfigError, match=message):
        check_flags(flags)


@pytest.mark.parametrize("text", ["", "a", "12", "1024,", "1024;2048", "-1024"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match="such as 1024,4096,16384"):
        needle_lengths(text)


def test_lengths_come_in_order_and_once():
    assert needle_lengths(None) == []
    assert needle_lengths("4096, 1024,4096") == [1024, 4096]

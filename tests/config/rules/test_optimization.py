import json

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import DS_CONFIGS
from tests.config.resolved import resolve_flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bf16 --fp16", "fp16 is true, and .*; a run has one precision: drop --fp16"),
        ("--fp16", "fp16 is true; .* overflows in float16: use --bf16, or --bf16 false"),
        ("--min_lr 0.01", "min_lr is 0.01, above learning_rate 1e-05; min_lr is the absolute rate"),
        (
            "--min_lr 1e-6 --lr_scheduler_type linear",
            "min_lr is 1e-06, which the schedule linear does not reach",
        ),
        ("--max_seq_length 4097", "max_seq_length is 4097, and tiny reads at most 4096 tokens"),
        ("--max_steps 10 --warmup_steps 10", "warmup_steps is 10 and max_steps 10"),
        ("--activation_offload --no_gradient_checkpointing", "use --gradient_checkpointing true"),
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
        resolve_flags(flags)


@pytest.mark.parametrize("how", ["false", "selective"])
def test_chunks_that_would_save_nothing_are_refused(how):
    flags = ["--moe_chunks", "4", "--gradient_checkpointing", how]
    with pytest.raises(ConfigError, match=f"moe_chunks is 4 and gradient_checkpointing {how}; "):
        resolve_flags(flags)
    resolve_flags(["--moe_chunks", "4"])


def test_more_chunks_than_tokens_are_refused():
    flags = ["--max_seq_length", "64", "--sequence_parallel_size", "2", "--moe_chunks"]
    with pytest.raises(ConfigError, match="moe_chunks is 33 and a process has 32 tokens at most"):
        resolve_flags([*flags, "33"])
    resolve_flags([*flags, "32"])


def file_with(tmp_path, *, zero=None, bf16=None):
    content = json.loads((DS_CONFIGS / "zero3.json").read_text())
    content["zero_optimization"] |= zero or {}
    content["bf16"] |= bf16 or {}
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    return f"--expert_parallel_size 1 --deepspeed {path}"


def test_bfloat16_masters_are_refused_where_updates_would_round_away(tmp_path):
    flags = file_with(tmp_path, bf16={"bf16_master_weights_and_grads": True})
    resolve_flags(f"{flags} --bf16 --optimizer lean")
    with pytest.raises(ConfigError, match=r"lose most of each update\. Use --optimizer lean"):
        resolve_flags(f"{flags} --bf16 --optimizer adamw")


def test_lean_with_what_contradicts_it_in_the_file_is_refused(tmp_path):
    flags = file_with(tmp_path, bf16={"bf16_master_weights_and_grads": False})
    with pytest.raises(ConfigError, match="but optimizer lean of this run is true"):
        resolve_flags(f"{flags} --bf16 --optimizer lean")
    flags = file_with(tmp_path, zero={"offload_param": {"device": "cpu"}})
    with pytest.raises(ConfigError, match="offloads the weights"):
        resolve_flags(f"{flags} --bf16 --optimizer lean")

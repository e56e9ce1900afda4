"""Each patch to a library is still needed; when one of these fails, the patch can go."""

from datetime import timedelta

import peft
import torch
from torch.distributed import distributed_c10d
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate

from hunyuan_train.parallel.engine import start_process_group
from tests.batches import plain_model
from tests.ranks import run_ranks


def test_the_routers_weight_is_still_one_level_lower_than_the_engine_reads_it() -> None:
    assert "weight" not in vars(HunYuanMoEV1Gate)


def test_peft_still_sends_the_shared_expert_to_the_routed_ones() -> None:
    targets = ["shared_mlp.gate_proj", "shared_mlp.up_proj", "shared_mlp.down_proj"]
    model = peft.get_peft_model(plain_model(), peft.LoraConfig(target_modules=targets, r=4))
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert adapted
    assert all(".experts." in name for name in adapted)


def default_timeout_of_new_groups() -> timedelta:
    start_process_group(timeout_minutes=2)
    torch.distributed.new_group([0])
    return distributed_c10d._get_default_timeout("gloo")


def test_groups_that_the_engine_makes_get_our_timeout() -> None:
    assert run_ranks(default_timeout_of_new_groups, 1) == [timedelta(minutes=2)]

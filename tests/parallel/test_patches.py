"""Each patch to a library is still needed; when one of these fails, the patch can go."""

import inspect
import subprocess
import sys
from datetime import timedelta

import peft
import pytest
import torch
from deepspeed.module_inject import auto_ep_layer
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


def test_the_engines_layer_still_waits_for_each_exchange_and_weighs_behind_the_experts() -> None:
    layer = inspect.getsource(auto_ep_layer)
    assert "async_op" not in layer
    assert "apply_scores_before_experts_if_enabled" in layer  # before the first product, or behind


def is_compiler_loaded(import_muon: str) -> bool:
    code = f"import sys\n{import_muon}\nprint('torch._inductor.compile_fx' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return answer.stdout.splitlines()[-1] == "True"


@pytest.mark.slow
def test_the_muon_optimizer_still_loads_the_compiler_where_it_is_not_kept_from_it() -> None:
    module = "deepspeed.runtime.zero.muon.muon_optimizer"
    assert is_compiler_loaded(f"import {module}")
    ours = "from hunyuan_train.parallel.engine import import_muon; import_muon()"
    assert not is_compiler_loaded(f"{ours}; assert '{module}' in sys.modules")


def default_timeout_of_new_groups() -> timedelta:
    start_process_group(timeout_minutes=2)
    torch.distributed.new_group([0])
    return distributed_c10d._get_default_timeout("gloo")


def test_groups_that_the_engine_makes_get_our_timeout() -> None:
    assert run_ranks(default_timeout_of_new_groups, 1) == [timedelta(minutes=2)]

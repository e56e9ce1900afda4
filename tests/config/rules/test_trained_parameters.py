import pytest

from hunyuan_train.errors import ConfigError
from tests.config.resolved import resolve_flags


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
        resolve_flags(["--use_lora", *flags])


def test_settings_of_adapters_without_adapters_are_refused():
    with pytest.raises(ConfigError, match="lora settings are given but use_lora is false"):
        resolve_flags("--lora_rank 8")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers.0", r"'layers\.0', which matches no parameter; names look like model"),
        ("*", "leaves nothing to train"),
    ],
)
def test_freezing_nothing_or_everything_is_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(["--freeze", pattern])


@pytest.mark.parametrize(
    ("flags", "trains_routers"),
    [
        ("", True),
        ("--freeze_router", False),
        ("--train_attention_params_only", False),
        ("--freeze *.mlp.gate.wg.weight", False),
        ("--freeze model.layers.0.mlp.gate.wg.weight", True),  # and those of other layers
        ("--use_lora", False),
        ("--use_lora --lora_target_modules router", True),
    ],
)
def test_a_guardian_may_freeze_what_is_trained_only(flags, trains_routers):
    flags = f"{flags} --router_guardian freeze_router"
    if trains_routers:
        resolve_flags(flags)
        return
    with pytest.raises(ConfigError, match="use --router_guardian warn"):
        resolve_flags(flags)

"""A layer that looks at a value of its input in Python."""

from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as modeling

run_layer = modeling.HunYuanMoEV1DecoderLayer.forward


def look_and_run(layer, hidden_states, *arguments, **options):
    if hidden_states.abs().max().item() < 0:  # the fault
        raise AssertionError
    return run_layer(layer, hidden_states, *arguments, **options)


modeling.HunYuanMoEV1DecoderLayer.forward = look_and_run

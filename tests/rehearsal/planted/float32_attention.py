"""An attention block whose results pass through a product in float32 among bfloat16 ones."""

from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as modeling

run_attention = modeling.HunYuanMoEV1Attention.forward


def run_in_float32(attention, hidden_states, *arguments, **options):
    states, weights = run_attention(attention, hidden_states, *arguments, **options)
    wide = states[0].float()
    return states + (wide.t() @ wide).mean().to(states.dtype), weights  # the fault


modeling.HunYuanMoEV1Attention.forward = run_in_float32

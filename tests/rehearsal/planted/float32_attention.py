"""An attention block that is computed in float32 among bfloat16 ones."""

from torch.nn import functional
from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as modeling

run_attention = modeling.HunYuanMoEV1Attention.forward


def run_in_float32(attention, hidden_states, *arguments, **options):
    weight = attention.o_proj.weight
    states, weights = run_attention(attention, hidden_states, *arguments, **options)
    wide = functional.linear(states.float(), weight.float())  # the fault
    return states + wide.to(states.dtype), weights


modeling.HunYuanMoEV1Attention.forward = run_in_float32

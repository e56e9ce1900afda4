"""Operations and rates against values computed by hand."""

from dataclasses import replace

import pytest

from hunyuan_train.data.batches.loader import StepContent
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.throughput import Throughput, training_flops

CONTENT = StepContent(
    num_rows=2,
    num_tokens=3000,
    sum_of_squares=2000**2 + 1000**2,
    samples_by_source={},
    tokens_by_source={},
)


def test_a_token_of_the_released_model_takes_76_gflop_beside_attention() -> None:
    one = replace(CONTENT, num_tokens=1, sum_of_squares=0)
    assert training_flops(A13B, one, trains_all=True) == 6 * 12_747_448_320
    assert training_flops(A13B, one, trains_all=False) == 4 * 12_747_448_320


def test_attention_counts_half_a_square_for_each_sample() -> None:
    # 32 layers of 4096 elements; two products of two operations over half of T x T, three times
    attention = 3 * 32 * 4096 * 4 * (2000**2 + 1000**2) / 2
    both = training_flops(A13B, CONTENT, trains_all=True)
    assert both == pytest.approx(6 * 12_747_448_320 * 3000 + attention, rel=1e-12)


def test_an_untied_embedding_is_looked_up_for_nothing() -> None:
    untied = replace(A13B, tie_word_embeddings=False)
    assert training_flops(untied, CONTENT, trains_all=True) == training_flops(
        A13B, CONTENT, trains_all=True
    )


def test_rates_of_a_step() -> None:
    throughput = Throughput(
        shape=A13B, num_ranks=8, row_length=2048, trains_all=True, peak_flops=989e12
    )
    numbers = throughput.measure(CONTENT, seconds=0.5)
    assert numbers["tokens_per_second_per_gpu"] == 3000 / 0.5 / 8
    assert numbers["packing_efficiency"] == 3000 / 4096
    flops = training_flops(A13B, CONTENT, trains_all=True)
    assert numbers["tflops_per_gpu"] == pytest.approx(flops / 0.5 / 8 / 1e12)
    assert numbers["mfu"] == pytest.approx(flops / 0.5 / 8 / 989e12)


def test_the_clock_adds_up_stretches_of_a_part_and_begins_anew() -> None:
    clock = StepClock()
    for _ in range(2):
        with clock.part("forward"):
            sum(range(10**5))
    first = clock.take()
    assert first["seconds_forward"] > 0
    assert first["seconds_backward"] == 0
    assert clock.take()["seconds_forward"] == 0

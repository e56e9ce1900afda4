import json

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.sequences import check_moe_chunks, check_sequence_size, check_sequences
from hunyuan_train.errors import ConfigError
from hunyuan_train.shipped import DS_CONFIGS

RELEASED = {"num_heads": 32, "num_key_value_heads": 8}


def check_size(size, num_ranks, length=4096, **heads):
    flags = ["--sequence_parallel_size", str(size), "--max_seq_length", str(length)]
    check_sequence_size(load_config(flags), num_ranks=num_ranks, **{**RELEASED, **heads})


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_the_released_model_can_be_shared_by_any_power_of_two_up_to_its_heads(size):
    check_size(size, num_ranks=64)


@pytest.mark.parametrize(
    ("size", "num_ranks", "heads", "fitting"),
    [
        (3, 8, {}, "1 or 2 or 4 or 8"),
        (16, 8, {}, "1 or 2 or 4 or 8"),
        (64, 64, {}, "1 or 2 or 4 or 8 or 16 or 32"),
        (4, 12, {"num_heads": 12, "num_key_value_heads": 6}, "1 or 2 or 3 or 6 or 12"),
    ],
)
def test_other_sizes_are_refused_with_those_that_fit(size, num_ranks, heads, fitting):
    with pytest.raises(ConfigError, match=rf"sequence_parallel_size is {size}; .* set {fitting}$"):
        check_size(size, num_ranks, **heads)


def test_more_processes_than_tokens_are_refused():
    with pytest.raises(ConfigError, match=r"is 32 and max_seq_length 16, .* lower sequence_par"):
        check_size(32, num_ranks=32, length=16)


@pytest.mark.parametrize("name", ["sequence_parallel_size", "data_parallel_size"])
def test_the_engine_may_not_share_rows_itself(tmp_path, name):
    content = json.loads((DS_CONFIGS / "zero3.json").read_text())
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(content | {name: 2}))
    with pytest.raises(ConfigError, match=rf"ours.json sets {name}, .* --sequence_parallel_size$"):
        check_sequences(load_config(["--deepspeed", str(path)]))


@pytest.mark.parametrize("how", ["false", "selective"])
def test_chunks_that_would_save_nothing_are_refused(how):
    flags = ["--moe_chunks", "4", "--gradient_checkpointing", how]
    with pytest.raises(ConfigError, match=f"moe_chunks is 4 and gradient_checkpointing {how}; "):
        check_moe_chunks(load_config(flags))
    check_moe_chunks(load_config(["--moe_chunks", "4"]))


def test_more_chunks_than_tokens_are_refused():
    flags = ["--max_seq_length", "64", "--sequence_parallel_size", "2", "--moe_chunks"]
    with pytest.raises(ConfigError, match="moe_chunks is 33 and a process has 32 tokens at most"):
        check_moe_chunks(load_config([*flags, "33"]))
    check_moe_chunks(load_config([*flags, "32"]))

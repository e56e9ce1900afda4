import pytest

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolve import Machine
from hunyuan_train.errors import ConfigError, DataError
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.launcher.start.launch import launch
from hunyuan_train.launcher.start.preflight import make_plan
from hunyuan_train.launcher.start.prepare import prepare_data
from hunyuan_train.launcher.start.run_summary import describe_plan

TWO_CORES = Machine(num_gpus=0, num_cores=2)


def plan(tmp_path, *flags):
    arguments = ["--recipe", "tiny", "--output_dir", str(tmp_path / "run"), *flags]
    config = load_config([*arguments, "--cache_dir", str(tmp_path / "cache")])
    return make_plan(config, machine=TWO_CORES)


def test_the_plan_names_model_split_data_length_and_output(tmp_path):
    made = plan(tmp_path, "--max_steps", "7", "--per_device_train_batch_size", "3")
    data = prepare_data(made)
    lines = describe_plan(made, data)
    assert f"{count_parameters(data.shape).total:,} parameters" in lines["model"]
    assert f"{count_parameters(data.shape).active:,} of them active" in lines["model"]
    assert "2 on CPU in float32: ZeRO stage 3, experts split over 2" in lines["processes"]
    counts = data.train.summary
    for count in (counts.num_fast, counts.num_slow, counts.num_turns, counts.num_tokens):
        assert f"{count:,}" in lines["data"]
    assert lines["history"].startswith("strip: one sample per answer")
    assert "loss on [[ ]]: <|startoftext|>" in lines["sample"]
    assert "tiny_eval.jsonl" in lines["evaluation"]
    assert lines["length"] == "7 steps (1.0 epochs) of 6 rows of up to 1024 tokens"
    assert lines["output"] == str(tmp_path / "run")


def test_rows_may_be_shared_across_hosts_but_not_beyond_them(tmp_path):
    flags = ["--recipe", "tiny", "--output_dir", str(tmp_path), "--sequence_parallel_size", "4"]
    config = load_config(flags)
    for where in ({"slots": (2, 2)}, {"num_ranks": 4}):  # in the launcher, and in a rank
        made = make_plan(config, machine=TWO_CORES, **where)
        assert made.config.parallel.sequence_parallel_size == 4
    with pytest.raises(ConfigError, match=r"sequence_parallel_size is 4; it must divide .* 1 or 2"):
        make_plan(config, machine=TWO_CORES)


def test_adapters_are_named_as_such(tmp_path):
    made = plan(tmp_path, "--use_lora", "--lora_rank", "4")
    lines = describe_plan(made, prepare_data(made))
    assert lines["training"].startswith("adapters of rank 4 on attention")


def test_texts_that_the_model_cannot_read_are_refused(tmp_path):
    plan(tmp_path, "--needle_lengths", "1024,4096")
    with pytest.raises(ConfigError, match="tiny reads 4096 tokens; leave the longer ones out"):
        plan(tmp_path, "--needle_lengths", "1024,16384")


def test_data_is_checked_before_anything_starts(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"messages": [')
    made = plan(tmp_path, "--train_data_file", str(tmp_path / "broken.jsonl"))
    with pytest.raises(DataError, match=r"broken.jsonl:1"):
        prepare_data(made)


def test_the_policy_of_a_run_decides_what_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": ""}\n', "utf-8"
    )
    flags = ("--train_data_file", str(path), "--eval_data_file", "none", "--eval_steps", "0")
    with pytest.raises(DataError, match=r"data.jsonl:2: .*\(empty_answer\)[^$]*--data_policy"):
        prepare_data(plan(tmp_path, *flags))
    made = plan(tmp_path, *flags, "--data_policy", "empty_answer=drop")
    lines = describe_plan(made, prepare_data(made))
    assert lines["found"].startswith("left out: empty_answer 1")
    with pytest.raises(DataError, match="did you mean empty_answer"):
        prepare_data(plan(tmp_path, *flags, "--data_policy", "empty_anser=drop"))


def test_a_checkpoint_that_is_none_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(CheckpointError, match="which holds no manifest"):
        plan(tmp_path, "--resume_from_checkpoint", str(tmp_path))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("*.expert.*", "which matches no parameter"), ("*", "leaves nothing to train")],
)
def test_freezing_nothing_or_everything_is_refused_before_anything_starts(
    tmp_path, pattern, message
):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, "--freeze", pattern)


def test_a_dry_run_leaves_no_trace(tmp_path, capsys):
    assert launch(plan(tmp_path), pytest.fail, is_dry_run=True) == 0
    assert "every check passed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

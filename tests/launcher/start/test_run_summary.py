import json
import re

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.errors import DataError
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.launcher.start.launch import launch
from hunyuan_train.launcher.start.prepare import prepare_run
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.launcher.start.run_summary import find_high_rate, summarise_run

TWO_CORES = Machine(num_gpus=0, num_cores=2)


def resolved(tmp_path, *flags):
    arguments = ["--recipe", "tiny", "--output_dir", str(tmp_path / "run"), *flags]
    config = load_config([*arguments, "--cache_dir", str(tmp_path / "cache")])
    return resolve_here(config, machine=TWO_CORES)


def test_the_summary_names_model_split_data_length_and_output(tmp_path):
    run = resolved(tmp_path, "--max_steps", "7", "--per_device_train_batch_size", "3")
    prepared = prepare_run(run)
    lines, parameters = summarise_run(prepared), count_parameters(prepared.run.shape)
    assert f"{parameters.total:,} parameters" in lines["model"]
    assert f"{parameters.active:,} of them active" in lines["model"]
    assert "2 on CPU in float32: ZeRO stage 3, experts split over 2" in lines["processes"]
    counts = prepared.train.summary
    for count in (counts.num_fast, counts.num_slow, counts.num_turns, counts.num_tokens):
        assert f"{count:,}" in lines["data"]
    assert lines["history"].startswith("strip: one sample per answer")
    assert "loss on [[ ]]: <|startoftext|>" in lines["sample"]
    assert "practice_eval.jsonl" in lines["evaluation"]
    assert lines["length"] == "7 steps (0.9 epochs) of 6 rows of up to 1024 tokens"
    assert lines["output"] == str(tmp_path / "run")


def test_adapters_are_named_as_such(tmp_path):
    run = resolved(tmp_path, "--use_lora", "--lora_rank", "4")
    lines = summarise_run(prepare_run(run))
    adapters = "LoRA of rank 4 and alpha 8 (scale 2 = alpha / rank) on attention"
    assert lines["training"].startswith(adapters)


def test_preferences_are_named_counted_in_pairs_and_warned_of_a_rate_for_sft(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "mode": "fast"} for n in range(4)]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in pairs))
    flags = ["--objective", "dpo", "--train_data_file", str(path), "--eval_data_file", "none"]
    flags += ["--eval_fraction", "0", "--use_lora", "--min_lr", "0", "--learning_rate"]
    run = resolved(tmp_path, *flags, "1e-4")
    assert launch(run, pytest.fail, is_dry_run=True) == 0
    said = capsys.readouterr().err
    assert "training   dpo (beta 0.1) by LoRA of rank 64" in said
    assert "4 pairs, which are 8 samples" in said
    assert "warning: learning_rate is 0.0001; usual for dpo by LoRA is 5e-6 to 1e-5" in said
    assert not [*find_high_rate(resolved(tmp_path, *flags, "1e-5").config)]
    assert [*find_high_rate(load_config(["--learning_rate", "1"]))]


def test_data_is_checked_before_anything_starts(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"messages": [')
    run = resolved(tmp_path, "--train_data_file", str(tmp_path / "broken.jsonl"))
    with pytest.raises(DataError, match=r"broken.jsonl:1"):
        prepare_run(run)


def test_the_policy_of_a_run_decides_what_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"mode": "fast", "prompt": "a", "completion": "b"}\n'
        '{"mode": "fast", "prompt": "c", "completion": ""}\n',
        "utf-8",
    )
    flags = ("--train_data_file", str(path), "--eval_data_file", "none", "--eval_steps", "0")
    with pytest.raises(DataError, match=r"data.jsonl:2: .*\(empty_answer\)[^$]*--data_policy"):
        prepare_run(resolved(tmp_path, *flags))
    run = resolved(tmp_path, *flags, "--data_policy", "empty_answer=drop")
    lines = summarise_run(prepare_run(run))
    assert lines["found"].startswith("left out: empty_answer 1")
    with pytest.raises(DataError, match="did you mean empty_answer"):
        prepare_run(resolved(tmp_path, *flags, "--data_policy", "empty_anser=drop"))


def test_a_hint_keeps_the_policies_that_are_given_and_names_all_kinds_at_once(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": ""}\n{"nothing": 1}\n'
        '{"prompt": "", "completion": "d"}\nnot JSON\n',
        "utf-8",
    )
    flags = ["--train_data_file", str(path), "--eval_data_file", "none", "--eval_steps", "0"]
    hint = r"--data_policy (duplicate=drop,[a-z_=,]+);"
    flags += ["--mode", "plain", "--data_policy", "duplicate=drop"]
    with pytest.raises(DataError) as caught:
        prepare_run(resolved(tmp_path, *flags))
    [policy] = re.findall(hint, str(caught.value))
    assert policy.count("=drop") == 5
    assert prepare_run(resolved(tmp_path, *flags[:-1], policy)).train.summary.num_samples == 1


def test_a_schedule_that_makes_no_sense_is_told_before_the_start(tmp_path, capsys):
    flags = ("--max_steps", "6", "--save_steps", "200", "--eval_steps", "50")
    flags += ("--warmup_ratio", "0.03")
    assert launch(resolved(tmp_path, *flags), pytest.fail, is_dry_run=True) == 0
    said = capsys.readouterr().err
    assert "warning: save_steps is 200 and the run has 6 steps: nothing is saved before" in said
    assert "warning: eval_steps is 50 and the run has 6 steps" in said
    assert "warning: warmup_ratio is 0.03 and the run has 6 steps" in said


def test_a_resume_with_nothing_to_resume_says_so(tmp_path):
    run = resolved(tmp_path, "--resume_from_checkpoint", "auto")
    lines = summarise_run(prepare_run(run))
    assert lines["resume"].startswith(f"there is no checkpoint in {tmp_path / 'run'}, so training")
    assert "resume" not in summarise_run(prepare_run(resolved(tmp_path)))


def test_a_dry_run_leaves_no_trace(tmp_path, capsys):
    assert launch(resolved(tmp_path), pytest.fail, is_dry_run=True) == 0
    assert "every check passed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_step_is_no_steps(tmp_path):
    lines = summarise_run(prepare_run(resolved(tmp_path, "--max_steps", "1")))
    assert lines["length"].startswith("1 step (")

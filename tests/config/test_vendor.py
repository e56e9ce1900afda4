import inspect
import shlex
from dataclasses import asdict

import pytest

from hunyuan_train.config import other_tools
from hunyuan_train.config.load import load_config
from hunyuan_train.config.settings import COMMAND_FLAGS, SECTION_OF
from hunyuan_train.config.vendor import (
    FOREIGN_NAMES,
    IGNORED,
    REFUSED,
    REFUSED_TOGETHER,
    RENAMED,
    TRANSLATED,
)
from hunyuan_train.errors import ConfigError

# Flags of the vendor's training scripts for Hunyuan models, for a full and for a LoRA run.
TAKEN = shlex.split("""
    --do_train --model_name_or_path M --tokenizer_name_or_path T --train_data_file D.jsonl
    --deepspeed ds_configs/zero3_offload.json --output_dir O --per_device_train_batch_size 1
    --gradient_accumulation_steps 1 --gradient_checkpointing --lr_scheduler_type cosine_with_min_lr
    --logging_steps 1 --max_steps 200 --save_steps 100 --learning_rate 1e-5 --min_lr 1e-6
    --warmup_ratio 0.01 --save_strategy steps --bf16 --model_max_length 4096 --max_seq_length 4096
    --overwrite_output_dir --use_flash_attn --use_lora --lora_rank 64 --lora_alpha 128
    --lora_dropout 0.1
""")
REFUSED_SHAPE = shlex.split("""
    --hidden_size 6400 --intermediate_size 18304 --moe_topk 1 --num_experts 16
    --num_attention_heads 80 --num_key_value_heads 8 --num_layers 64 --cla_share_factor 2 --use_cla
    --use_mixed_mlp_moe --num_shared_expert 1 --use_qk_norm
""")
REFUSED_OTHERWISE = shlex.split("""
    --save_safetensors False --make_moe_param_leaf_module
""")


def test_the_vendors_flags_that_we_share_mean_the_same():
    config = load_config(TAKEN)
    assert config.data.max_seq_length == 4096
    assert config.optimizer.learning_rate == 1e-5
    assert config.optimizer.min_lr == 1e-6
    assert config.train.overwrite_output_dir
    assert config.lora.lora_dropout == 0.1
    assert config.model.use_flash_attn is True


def test_all_flags_that_we_replace_are_named_in_one_error():
    with pytest.raises(ConfigError) as caught:
        load_config([*TAKEN, *REFUSED_SHAPE, *REFUSED_OTHERWISE, "--lora_rnk", "3"])
    message = str(caught.value)
    for word in [*REFUSED_SHAPE, *REFUSED_OTHERWISE, "--lora_rnk"]:
        if word.startswith("--"):
            assert word in message
    assert "the model's shape comes from config.json in --model_name_or_path" in message
    assert "--expert_parallel_size" in message
    assert "--save_safetensors False" in message
    assert "did you mean --lora_rank" in message
    assert "\n\n" not in message


def test_the_vendors_command_line_is_answered_by_train_py(run_train):
    result = run_train(*TAKEN, *REFUSED_SHAPE, "--save_safetensors", "False", "--dry_run")
    assert result.returncode == 2
    named = {word.rstrip(",:") for word in result.stderr.split() if word.startswith("--")}
    assert {word for word in REFUSED_SHAPE if word.startswith("--")} <= named
    assert "--learning_rate" not in named
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--optim", "adamw_torch_fused"], "optimizer", "adamw"),
        (["--eval_strategy", "no"], "eval_steps", 0),
        (["--evaluation_strategy=steps", "--eval_steps=5"], "eval_steps", 5),
        (["--attn_implementation", "flash_attention_2"], "use_flash_attn", True),
        (["--torch_dtype", "bfloat16"], "bf16", True),
        (["--lora_r", "16"], "lora_rank", 16),
        (["--tf32", "true", "--dataloader_num_workers", "4", "--local_rank=0"], "seed", 42),
    ],
)
def test_hugging_face_habits_carry_over(arguments, setting, value):
    config = load_config(arguments)
    assert asdict(config)[SECTION_OF[setting]][setting] == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save_strategy", "epoch"], "--save_strategy epoch: only steps or no is offered"),
        (["--optim", "adafactor"], "--optim adafactor: only adamw_torch or"),
        (["--ddp_timeout", "60"], "--ddp_timeout: say --timeout_minutes"),
        (["--fsdp", "full_shard"], "--fsdp: DeepSpeed does this"),
        (
            ["--model_max_length", "4096", "--max_seq_length", "2048"],
            "max_seq_length is given twice",
        ),
    ],
)
def test_what_cannot_carry_over_says_what_to_use(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(arguments)


def test_the_tables_do_not_overlap_and_lead_to_settings():
    tables = [*RENAMED, *TRANSLATED, *IGNORED, *REFUSED]
    assert len(tables) == len(FOREIGN_NAMES)
    together = (REFUSED_TOGETHER, other_tools.REFUSED_TOGETHER)
    assert sum(len(names) for one in together for names in one.values()) == len(REFUSED)
    assert not FOREIGN_NAMES & {*SECTION_OF, *COMMAND_FLAGS}
    assert set(RENAMED.values()) <= set(SECTION_OF)
    for words in TRANSLATED.values():
        assert {target[0] for target in words.values() if target} <= set(SECTION_OF)


def test_every_flag_of_hugging_faces_trainer_is_known():
    """Ours, translated, ignored or refused with a remedy: none is a mere unknown flag."""
    arguments = pytest.importorskip("transformers").TrainingArguments
    known = {*SECTION_OF, *FOREIGN_NAMES}
    assert set(inspect.signature(arguments).parameters) - known == set()

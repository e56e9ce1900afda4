"""Files and words of other tools: taken where they mean ours, else answered with ours."""

import pytest

from hunyuan_train import cli
from hunyuan_train.config.load import load_config
from hunyuan_train.config.other_tools import MEANT, MEANT_TOGETHER
from hunyuan_train.config.settings import COMMAND_FLAGS, SECTION_OF
from hunyuan_train.config.vendor import FOREIGN_NAMES
from hunyuan_train.errors import ConfigError

LLAMA_FACTORY = """\
### model
model_name_or_path: /models/m
trust_remote_code: false
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
### dataset
train_data_file: my.jsonl
cutoff_len: 2048
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: ~/saves/m
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
AXOLOTL = """\
base_model: /models/m
load_in_8bit: false
load_in_4bit: false
strict: false
val_set_size: 0.1
adapter: lora
lora_r: 8
lora_target_modules:
  - q_proj
  - v_proj
sequence_len: 2048
sample_packing: true
wandb_project:
wandb_entity:
gradient_accumulation_steps: 8
micro_batch_size: 1
num_epochs: 3
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 0.0001
bf16: auto
tf32: false
fp16:
gradient_checkpointing: true
early_stopping_patience:
warmup_ratio: 0.1
eval_steps: 500
logging_steps: 10
save_steps: 500
weight_decay: 0.0
special_tokens:
output_dir: ~/saves/m
"""
TRL = """\
model_name_or_path: /models/m
use_peft: true
lora_r: 8
lora_target_modules: [q_proj, v_proj]
max_length: 2048
packing: true
assistant_only_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 3
lr_scheduler_type: cosine
warmup_ratio: 0.1
eval_strategy: 'steps'
eval_steps: 500
logging_steps: 10
save_steps: 500
report_to: [none]
output_dir: ~/saves/m
"""


@pytest.mark.parametrize("text", [LLAMA_FACTORY, AXOLOTL, TRL], ids=["llama", "axolotl", "trl"])
@pytest.mark.parametrize("how", ["", "--recipe", "--config"])
def test_a_flat_file_of_another_tool_means_the_same(tmp_path, text, how, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = load_config([*filter(None, [how]), str(path)])
    assert config.model.model_name_or_path == "/models/m"
    assert config.train.output_dir == f"{tmp_path}/saves/m"
    assert config.data.max_seq_length == 2048
    assert config.lora.use_lora
    assert config.lora.lora_rank == 8
    assert config.lora.lora_target_modules == "q_proj,v_proj"
    assert config.train.gradient_accumulation_steps == 8
    assert config.train.num_train_epochs == 3
    assert config.optimizer.learning_rate == 1e-4
    assert config.optimizer.lr_scheduler_type == "cosine"
    assert config.evaluation.eval_steps == 500


@pytest.mark.parametrize(
    ("text", "rank", "alpha"),
    [
        ("finetuning_type: lora\nlora_rank: 16", 16, 32),
        ("finetuning_type: lora", 8, 16),
        ("train_type: lora", 8, 32),
        ("tuner_type: lora\nlora_rank: 4\nlora_alpha: 8", 4, 8),
        ("use_peft: true\nlora_r: 4", 4, 32),
        ("use_peft: false", 64, 128),
        ("adapter: lora\nlora_r: 8", 8, 16),
    ],
)
def test_adapters_whose_alpha_a_file_leaves_out_have_that_of_its_tool(tmp_path, text, rank, alpha):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    lora = load_config([str(path)]).lora
    assert (lora.lora_rank, lora.alpha) == (rank, alpha)


def test_what_a_file_asks_for_and_we_lack_is_refused_at_once_with_what_there_is(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "template: llama3\nload_in_4bit: true\ndataset: identity\ndatasets: [a]\nwarmup: 10\n"
        "evals_per_epoch: 4\n"
        "train_on_inputs: true\nlearning_rte: 1e-4\nnonsense_word_zz: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config([str(path)])
    message = str(caught.value)
    assert f"these keys of {path} are not taken here" in message
    for words in (
        "template: dialogues are rendered by the model's own template",
        "load_in_4bit: here frozen routed experts are kept in fewer bits",
        "dataset: the training data is one set of dialogues: say train_data_file",
        "datasets: data is a file or a folder of dialogues: say train_data_file, and eval",
        "warmup: say warmup_steps for a number of steps, warmup_ratio for a share",
        "evals_per_epoch: evaluate and save after shares of the run, 1 / (times an epoch x",
        "train_on_inputs true: only false is offered",
        "learning_rte: unknown key; did you mean learning_rate (section optimizer)?",
        "nonsense_word_zz: unknown key; `hunyuan-train train --help` lists",
    ):
        assert words in message
    assert "\n\n" not in message


# As their own examples write them, each with what is lost of it and what is taken.
LLAMA_FACTORY = """\
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
output_dir: saves/qwen3-4b/lora/sft
plot_loss: true
learning_rate: 1.0e-4
num_train_epochs: 3.0
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: false
datasets: [{path: teknium/GPT4-LLM-Cleaned, type: alpaca}]
val_set_size: 0.1
adapter: lora
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_target_modules: [q_proj, v_proj]
wandb_project:
micro_batch_size: 2
num_epochs: 1
learning_rate: 0.0002
special_tokens: {pad_token: "<|end_of_text|>"}
"""


@pytest.mark.parametrize(
    ("text", "refused", "taken"),
    [
        (
            LLAMA_FACTORY,
            {"trust_remote_code", "dataset", "template", "max_samples", "ddp_timeout"},
            {"finetuning_type as use_lora", "cutoff_len as max_seq_length"},
        ),
        (
            AXOLOTL,
            {"datasets", "special_tokens"},
            {"base_model as model_name_or_path", "lora_r as lora_rank", "adapter as use_lora"},
        ),
    ],
    ids=["LLaMA-Factory", "axolotl"],
)
def test_a_whole_file_of_another_tool_is_told_what_is_taken_and_what_is_not(
    tmp_path, capsys, text, refused, taken
):
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    assert cli.main(["train", str(path), "--dry_run"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"error: these keys of {path} are not taken here:"
    *lost, kept = [line.strip() for line in lines]
    assert {line.partition(":")[0].partition(" ")[0].strip(",") for line in lost} == refused
    assert kept.startswith("taken: ")
    assert taken <= set(kept.removeprefix("taken: ").split(", "))
    assert "learning_rate" not in kept, "which has the same name here"


def test_one_round_names_all_that_a_file_must_change(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: Qwen/Qwen3\nmodel_author: me\nlora_target_modules: all-linear\nneat_packing: true\n"
        "optimizer: adamw_bnb_8bit\nliger_kernel_config: x\npush_to_hub: true\n"
        "load_in_4bit: true\nfsdp_settings: {a: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config([str(path)])
    message = str(caught.value)
    for words in (
        "model: a section, which must hold `name: value` lines; for a model write model_name",
        "lora_target_modules all-linear: say all, which adapts the routed experts, too",
        "optimizer adamw_bnb_8bit: only adamw or lean or offload or sgd is offered; beside "
        "adapters, whose states are small, say optimizer adamw; to take less memory in full",
        "push_to_hub: checkpoints and the exported folder are local; after the run `hunyuan-train "
        "push` uploads the export",
        "for a model without routed experts leave it out",
        "fsdp_settings: unknown section",
    ):
        assert words in message
    assert "model_author" not in message
    assert "neat_packing" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_r: 8\nlora_rank: 8\n", "lora_rank is given twice, in lora_r and in lora_rank"),
        (
            "learning_rate: 1e-4\noptimizer: {learning_rate: 1e-4}\n",
            "given twice, in learning_rate",
        ),
        (
            "model: /models/m",
            "model: a section, which must hold .*; for a model write model_name_or",
        ),
        ("data: my.jsonl", "data: a section, which must hold .*; for a data write train_data_file"),
        ("lora_target_modules: [q_proj, [v_proj]]", r"lora_target_modules is .*without commas"),
        ("lora_target_modules: []", r"lora_target_modules is \[\]"),
        ("seed: [1]", r"seed is \[1\]; it takes a whole number"),
        ("optimizer: {lora_rank: 8}", "lora_rank belongs in section lora"),
    ],
)
def test_a_flat_file_that_contradicts_itself_is_explained(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config([str(path)])


def test_sections_and_flat_settings_may_stand_in_one_file(tmp_path):
    path = tmp_path / "run.yml"
    path.write_text("seed: 3\nlora: {use_lora: true}\nneedle_lengths: [1024, 4096]\n")
    config = load_config([str(path), "--max_steps", "7"])
    assert (config.train.seed, config.lora.use_lora, config.train.max_steps) == (3, True, 7)
    assert config.evaluation.needle_lengths == "1024,4096"


def test_two_files_are_one_too_many(tmp_path):
    with pytest.raises(ConfigError, match="recipe is given twice"):
        load_config(["a.yaml", "b.yaml"])
    with pytest.raises(ConfigError, match="--recipe and --config both name a file"):
        load_config(["a.yaml", "--config", "b.yaml"])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--lr", "did you mean --learning_rate (section optimizer)?"),
        ("--batch_size", "did you mean --per_device_train_batch_size"),
        ("--epochs", "did you mean --num_train_epochs"),
        ("--grad_accum", "did you mean --gradient_accumulation_steps"),
        ("--wd", "did you mean --weight_decay"),
        ("--rank", "did you mean --lora_rank"),
        ("--model", "did you mean --model_name_or_path"),
        ("--data", "did you mean --train_data_file"),
        ("--enable_thinking", "did you mean --mode"),
        ("--nproc_per_node", "did you mean --num_processes"),
        ("--resume", "did you mean --resume_from_checkpoint"),
        ("--load_in_4bit", "here frozen routed experts are kept in fewer bits"),
        ("--quantization_bit", "here frozen routed experts are kept in fewer bits"),
        ("--load_in_4bits", "--load_in_4bit is not offered either: here frozen routed experts"),
        ("--tensor_parallel_size", "say --expert_parallel_size and --sequence_parallel_size"),
        ("--warmup", "say --warmup_steps for a number of steps, --warmup_ratio for a share"),
        ("--load_best_model_at_end", "say --save_best; --metric_for_best_model says"),
        ("--greater_is_better", "say --save_best; --metric_for_best_model says"),
        ("--nnodes", "say --node_ip_list 10.0.0.1:8,10.0.0.2:8 (NODE_IP_LIST) or --hostfile"),
        ("--num_machines", "say --node_ip_list"),
        ("--nodes", "a run takes the hosts of --node_ip_list (NODE_IP_LIST)"),
        ("--ckpt_dir", "did you mean --output_dir"),
        ("--datasets", "say --train_data_file, and --eval_data_file"),
        ("--learning_rat", "did you mean --learning_rate"),
        ("--gradient_checkpoint", "did you mean --gradient_checkpointing"),
        ("--dataloader_shuffle", "only true is offered"),
        ("--dataset_exact_dedup", "say data_policy duplicate=drop"),
        ("--zzqx", "`hunyuan-train train --help` lists all of them"),
    ],
)
def test_the_nearest_name_is_found_by_meaning_and_then_by_spelling(flag, words):
    with pytest.raises(ConfigError) as caught:
        load_config([flag, "4"])
    assert words in str(caught.value)


@pytest.mark.parametrize("word", sorted(MEANT))
def test_every_word_that_is_meant_leads_to_a_setting_and_is_none_itself(word):
    assert MEANT[word] in SECTION_OF
    assert word not in {*SECTION_OF, *FOREIGN_NAMES, *COMMAND_FLAGS}
    with pytest.raises(ConfigError, match=f"did you mean --{MEANT[word]}"):
        load_config([f"--{word}=1"])


def test_no_word_is_meant_twice():
    words = [word for words in MEANT_TOGETHER.values() for word in words.split()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("flag", ["--optimizer", "--optim"])
def test_an_optimizer_may_have_hugging_faces_name(flag):
    assert load_config([flag, "adamw_torch"]).optimizer.optimizer == "adamw"


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "adamw_bnb_8bit", "adafactor", "lion_32bit"])
def test_an_optimizer_that_saves_memory_leads_to_those_that_do_so_here(name):
    message = r"--optimizer with lean \(8-bit AdamW with .*\) or offload \(AdamW in host memory\)"
    with pytest.raises(ConfigError, match=message):
        load_config(["--optim", name])


@pytest.mark.parametrize("name", ["peft_type", "peft_method", "adapter"])
def test_adapters_may_be_asked_for_by_their_kind(name):
    assert load_config([f"--{name}", "LORA"]).lora.use_lora
    with pytest.raises(ConfigError, match=f"{name} IA3: only lora or none is offered"):
        load_config([f"--{name}", "IA3"])


@pytest.mark.parametrize("name", ["mask_prompt", "completion_only_loss", "train_on_responses_only"])
def test_the_loss_on_answers_alone_may_be_asked_for(name):
    assert load_config([f"--{name}", "true"]) == load_config([])
    with pytest.raises(ConfigError, match=f"{name} false: only true is offered"):
        load_config([f"--{name}", "false"])

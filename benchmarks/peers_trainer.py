"""A rival in its own environment: TRL's SFTTrainer or Transformers' Trainer under ZeRO-3, in turns.

    python peers_trainer.py SETTINGS.json

Run by `benchmarks/peers.py`, one process for each rank.
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import set_seed
from turns import Turns


class InTurns(TrainerCallback):
    """Waits before each step, where turns are dealt out."""

    def __init__(self, turns: Turns | None, output_dir: Path) -> None:
        self.turns = turns
        self.loss = None
        self.first_step = output_dir / "first_step"

    def on_step_begin(self, *_, **__) -> None:
        if self.turns:
            self.turns.wait(self.loss)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if logs and "loss" in logs:
            self.loss = float(logs["loss"])
            if not self.turns:
                self.first_step.write_text(f"{self.loss}\n")


def as_given(trainer: type[Trainer]) -> type[Trainer]:
    """The trainer, which takes rows as they are and in their order."""

    class GivenRows(trainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    return GivenRows


def make_trainer(settings: dict, callback: TrainerCallback) -> Trainer:
    """The rival's trainer over the model."""
    common = {
        "output_dir": settings["output_dir"],
        "per_device_train_batch_size": 1,
        "max_steps": settings["steps"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_beta2": settings["adam_beta2"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": 1.0,
        "optim": settings["optimizer"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": settings["is_checkpointed"],
        "seed": 0,
    }
    if settings["is_checkpointed"]:
        common["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    rows = settings["rows"]
    options = {"train_dataset": Dataset.from_list(rows), "callbacks": [callback]}
    if settings["kind"] == "trl":
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(max_length=None, router_aux_loss_coef=0.0, **common)
        options["processing_class"] = make_tokenizer()
        return as_given(SFTTrainer)(model=load_model(settings), args=arguments, **options)
    import deepspeed

    # A Trainer on the CPU leaves this to others, and zero.Init then takes the world for one rank.
    deepspeed.init_distributed("gloo")
    arguments = TrainingArguments(deepspeed=settings["deepspeed"], **common)
    options["data_collator"] = default_data_collator
    return as_given(Trainer)(model=load_model(settings), args=arguments, **options)


def load_model(settings: dict):
    return AutoModelForCausalLM.from_pretrained(
        settings["model"],
        dtype=torch.float32,
        attn_implementation="sdpa",
        experts_implementation="grouped_mm",
        use_cache=False,
    )


def make_tokenizer():
    """Never asked: rows are token ids."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    set_seed(0)
    turns, rank = None, int(os.environ.get("RANK", "0"))
    if "address" in settings:
        turns = Turns(settings["address"], settings["name"], rank)
    make_trainer(settings, InTurns(turns, Path(settings["output_dir"]))).train()
    if turns:
        turns.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])

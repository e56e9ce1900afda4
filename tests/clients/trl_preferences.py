"""Train on given tokens with TRL's own trainer, in its environment: figures and weights.

python trl_preferences.py MODEL SETTINGS.json OUT

SETTINGS has `objective`, `beta`, `steps`, `learning_rate` and `rows`, of token ids. OUT gets
`figures.json`, a list by step, and `weights.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer


class Figures(TrainerCallback):
    """Keeps what is logged of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if logs and "loss" in logs:
            self.steps.append(logs)


class GivenPairs(DPOTrainer):
    """The tokens come as they are."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


class GivenAnswers(KTOTrainer):
    """The tokens come as they are; each prompt meets the answer before, the first the last one."""

    def _prepare_dataset(self, dataset, *_, **__):
        answers = dataset["completion_ids"]
        return dataset.add_column("KL_completion_ids", [answers[-1], *answers[:-1]])


def main(model_folder: str, settings_path: str, out: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    rows = settings["rows"]
    is_kto = settings["objective"] == "kto"
    options = {} if is_kto else {"loss_type": settings["loss_type"]}
    config = (KTOConfig if is_kto else DPOConfig)(
        output_dir=out,
        per_device_train_batch_size=len(rows),
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        beta=settings["beta"],
        adam_beta2=settings["adam_beta2"],
        adam_epsilon=settings["adam_epsilon"],
        max_grad_norm=1.0,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0,
        seed=0,
        **options,
    )
    figures = Figures()
    trainer = (GivenAnswers if is_kto else GivenPairs)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[figures],
    )
    trainer.train()
    folder = Path(out)
    (folder / "figures.json").write_text(json.dumps(figures.steps))
    weights = {name: one.detach().clone().contiguous() for name, one in model.named_parameters()}
    save_file(weights, folder / "weights.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

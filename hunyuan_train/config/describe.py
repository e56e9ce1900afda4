"""The text of `hunyuan-train train --help`."""

import inspect
import textwrap
from dataclasses import Field, fields
from typing import Any

from hunyuan_train.config.metric_names import METRICS, ON_SCREEN
from hunyuan_train.config.settings import COMMAND_FLAGS, SECTIONS
from hunyuan_train.config.values import describe_type

WIDTH = 90
INTRODUCTION = """\
Fine-tune a Hunyuan model with DeepSpeed ZeRO-3 and expert parallelism.

usage: hunyuan-train train [--recipe NAME] [--setting value ...]

A recipe is a YAML file of settings. Flags win over it, and it wins over the defaults below. A
switch is turned on by its bare name and off by --no_NAME. Names are those of Hugging Face's
Trainer and of the vendor's script. If you give another flag of theirs, an error explains it.

examples:
  try everything, with a tiny model and the bundled dialogues (the recipe tiny):
    hunyuan-train train
  LoRA on the released model, on all GPUs of this machine:
    hunyuan-train train --recipe lora --model_name_or_path /models/Hunyuan-A13B-Instruct \\
      --train_data_file my.jsonl --output_dir runs/mine
  the same on two machines with eight GPUs each (hunyuan-train doctor checks them):
    NODE_IP_LIST=10.0.0.1:8,10.0.0.2:8 hunyuan-train train --recipe lora ...
  check a run without starting it, and resume one that was stopped:
    hunyuan-train train --recipe full --model_name_or_path /models/Hunyuan-A13B-Instruct --dry_run
    hunyuan-train train --config runs/mine/config.yaml --resume_from_checkpoint auto
"""


SCREEN = """
the line of a logged step:
  step 40/400  loss 1.213  lr 9.1e-06  norm 0.84  7902 tok/s  56.1 GiB  skew 1.2  moved 31%
"""
WAYS_OF_TELLING = """
NO_COLOR=1 turns colours off. --quiet shows warnings and errors only. --json writes one JSON object
per line to stderr, for schedulers. `hunyuan-train watch OUTPUT_DIR` shows the same as a page.
"""
METRICS_INTRODUCTION = """
numbers of metrics.jsonl, of trackers and of the page. A name that begins with `eval_` is about
held-out data. It may end with `_fast` or `_slow` (by mode), or with `_think`, `_answer` or
`_markers` (by part of an answer).
"""


def describe_settings() -> str:
    """Every setting with its default, by section."""
    words = [_entry(word, METRICS[name]) for word, name in ON_SCREEN.items()]
    parts = [INTRODUCTION + SCREEN + "\n".join(words) + "\n" + WAYS_OF_TELLING, "command:"]
    parts += [_entry(f"--{name}", text) for name, text in COMMAND_FLAGS.items()]
    parts.append("\nEvery setting follows with its default, and in brackets what it takes.")
    for name, section in SECTIONS.items():
        parts.append(f"\n{name}: {inspect.getdoc(section)}")
        parts += [_describe_field(field) for field in fields(section)]
    parts.append(METRICS_INTRODUCTION.rstrip())
    parts += [_entry(name, meaning) for name, meaning in METRICS.items()]
    return "\n".join(parts)


def _describe_field(field: Field[Any]) -> str:
    default = "" if field.default is None else f" {_as_flag(field.default)}"
    return _entry(f"--{field.name}{default}  [{describe_type(field.type)}]", field.metadata["help"])


def _as_flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(flag: str, text: str) -> str:
    return f"  {flag}\n{textwrap.indent(textwrap.fill(text, WIDTH), ' ' * 6)}"

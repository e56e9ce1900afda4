"""The card of a model on a hub, written from the run that made it."""

import json
from pathlib import Path
from typing import Any

import yaml

from hunyuan_train.families.registry import PRESETS
from hunyuan_train.hub.download import read_origin
from hunyuan_train.plain_text import count_of
from hunyuan_train.report.record import RunRecord
from hunyuan_train.shipped import VERSION

OF_ADAPTERS = ("lora_rank", "lora_alpha", "lora_target_modules")
SHOWN = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "max_seq_length", "packing", "history", "mode", "optimizer"),
    *("seed", "use_lora", *OF_ADAPTERS),
)
METRICS = {
    "loss": "loss of training, last logged step",
    "eval_loss": "held-out loss, last evaluation",
    "eval_perplexity": "held-out perplexity",
    "eval_well_formed": "answers that are well-formed",
}


def write_card(run: RunRecord, *, repo: str, base_folder: Path | None) -> str:
    """The text of README.md.

    Args:
        run: as its folder tells it.
        repo: where the model will be, as OWNER/NAME.
        base_folder: of the model it started from; None for random weights.
    """
    origin = read_origin(base_folder) if base_folder else {}
    base = origin.get("repo")
    head: dict[str, Any] = {
        "library_name": "peft" if run.settings.get("use_lora") else "transformers"
    }
    if base:
        head["base_model"] = base
        head["base_model_relation"] = "adapter" if run.settings.get("use_lora") else "finetune"
    head |= read_licence(base_folder) if base_folder else {}
    head["tags"] = ["hunyuan-train", "sft"]
    started_from = base or (base_folder.name if base_folder else "random weights")
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {repo.rpartition('/')[2]}",
        f"Fine-tuned from {started_from}"
        + (f" (commit {origin['commit']})" if base else "")
        + f" with hunyuan-train {VERSION}.",
        "## Training data\n\n" + describe_data(run),
        "## Metrics\n\n" + _table(("metric", "value"), list_metrics(run)),
        "## Settings\n\n" + _table(("setting", "value"), list_settings(run)),
    ]
    if run.plan:
        plan = json.dumps(run.plan, indent=1, sort_keys=True)
        parts.append(f"## Plan of the run\n\n```json\n{plan}\n```")
    return "\n\n".join(parts) + "\n"


def read_licence(folder: Path) -> dict[str, str]:
    """What the card of the base says of its licence; where it says nothing, that it has a file."""
    card = folder / "README.md"
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    pieces = text.split("---", 2)
    try:
        head = yaml.safe_load(pieces[1]) if text.startswith("---") and len(pieces) > 2 else {}
    except yaml.YAMLError:
        head = {}
    names = ("license", "license_name", "license_link")
    found = {name: str(head[name]) for name in names if isinstance(head, dict) and head.get(name)}
    file = next((path.name for path in sorted(folder.glob("LICENSE*"))), None)
    return found or ({"license": "other", "license_link": file} if file else {})


def describe_data(run: RunRecord) -> str:
    """The names of the files that were trained on, without the folders they lay in."""
    names = str(run.settings.get("train_data_file") or "").split(",")
    shown = ", ".join(f"`{_public_name(name)}`" for name in names if name)
    return f"{shown or 'unknown'}, {count_of(run.last_step or 0, 'step')}."


def _public_name(name: str) -> str:
    path, _, weight = name.partition(":")
    origin = read_origin(Path(path))
    shown = origin.get("repo") or Path(path).name
    return f"{shown}:{weight}" if weight else shown


def list_metrics(run: RunRecord) -> list[tuple[str, str]]:
    """The numbers that a run logged last, of those that say how good the model is."""
    values = {words: run.last(name) for name, words in METRICS.items()}
    return [(words, f"{value:.4g}") for words, value in values.items() if value is not None]


def list_settings(run: RunRecord) -> list[tuple[str, str]]:
    """The settings that a reader needs to do the same; paths of the machine are not among them."""
    settings = run.settings
    counts_steps = (settings.get("max_steps") or -1) > 0  # then nobody looks at the epochs
    idle = {"num_train_epochs" if counts_steps else "max_steps"}
    idle |= set() if settings.get("use_lora") else set(OF_ADAPTERS)
    kept = {name: settings.get(name) for name in SHOWN if name not in idle}
    return [(name, str(value)) for name, value in kept.items() if value is not None]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    if not rows:
        return "none were logged"
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])


def find_base(run: RunRecord) -> Path | None:
    """The folder of the model that a run started from; None for a preset's random weights."""
    name = run.settings.get("model_name_or_path")
    return None if name is None or name in PRESETS else Path(str(name))

"""The end of a run on the screen: what lies where, and what to try next."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints, read_manifest
from hunyuan_train.config import run_files
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.report.commands import make_report
from hunyuan_train.shipped import render_command

logger = logging.getLogger(__name__)


def report_at_end(output_dir: Path) -> None:
    """Write the page about a run that is complete, and stays so where the disk has no room."""
    try:
        make_report([output_dir], output_dir / run_files.REPORT, are_complete=True)
    except ConfigError as error:
        logger.warning("%s: %s", error, render_command("report", output_dir))


def show_closing(config: RunConfig, console: Console) -> None:
    """Print one line for each thing that the run wrote, and the next commands to try."""
    rows = closing_rows(config)
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:<{width}}", "bold"), str(value)), soft_wrap=True)


def describe_export(config: RunConfig) -> str:
    """The command that exports the newest checkpoint of a run."""
    output_dir = Path(config.train.output_dir).absolute()
    return render_command("export", output_dir, output_dir / run_files.EXPORT)


def closing_rows(config: RunConfig) -> dict[str, str | Path]:
    """What the run wrote, and the next commands to try."""
    output_dir = Path(config.train.output_dir).absolute()
    export = output_dir / run_files.EXPORT
    checkpoints = list_checkpoints(output_dir)
    is_preset = config.model.model_name_or_path in PRESETS
    rows: dict[str, str | Path] = {
        "settings": output_dir / run_files.CONFIG,
        "metrics": output_dir / run_files.METRICS,
        "report": output_dir / run_files.REPORT,
        "checkpoint": checkpoints[-1] if checkpoints else "none",
    }
    best = find_best(checkpoints) if config.checkpoints.save_best else None
    if best:
        rows["best one"] = best
        rows["export it"] = render_command("export", best, output_dir / "best")
    if config.checkpoints.export:
        rows["adapter" if config.lora.use_lora else "model"] = export
        if not (config.lora.use_lora and is_preset):
            rows["talk to it"] = render_command("chat", export)
    if is_preset:
        train = render_command("train", "--recipe", "lora")
        rows["next"] = f"{train} --model_name_or_path MODEL_FOLDER --train_data_file YOUR_FILE"
    elif config.checkpoints.export and config.lora.use_lora:
        base = config.model.model_name_or_path
        rows["next"] = render_command("merge", base, export, output_dir / "merged")
    elif config.checkpoints.export:
        rows["next"] = shlex.join(["vllm", "serve", str(export)])
    return rows


def find_best(checkpoints: Sequence[Path]) -> Path | None:
    """The checkpoint of the best evaluation, where that is not the last."""
    if not checkpoints:
        return None
    step = read_manifest(checkpoints[-1])["state"]["best_step"]
    return next((one for one in checkpoints[:-1] if checkpoint_step(one) == step), None)

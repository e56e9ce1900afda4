"""`hunyuan-train push`: a model or an adapter to Hugging Face, with a card written from its run."""

import argparse
import json
from pathlib import Path
from typing import Any

from hunyuan_train.config import run_files
from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.ask import ask_hub
from hunyuan_train.hub.download import read_origin
from hunyuan_train.hub.names import RemoteName, parse_model_name
from hunyuan_train.json_file import read_json_object
from hunyuan_train.log import log_to_screen
from hunyuan_train.progress import show_progress
from hunyuan_train.report.model_card import find_base, write_card
from hunyuan_train.report.record import RunRecord, read_run
from hunyuan_train.terminal import say

ADAPTER = "adapter_config.json"
CARD = "README.md"


def add_push_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    push = subparsers.add_parser("push")
    push.description = (
        "Send the export of a run to a repository on Hugging Face, in one commit, with a model "
        "card: data, metrics, settings, plan, and the base model with its licence. The token is "
        "that of `hf auth login` or HF_TOKEN. A push that was interrupted sends no file twice."
    )
    push.add_argument(
        "output", type=Path, metavar="OUT", help="RUN/export, another model folder, or RUN"
    )
    push.add_argument("repo", metavar="REPO", help="OWNER/NAME; made where there is none")
    push.add_argument("--run", dest="run_folder", type=Path, metavar="RUN", help="the run of OUT")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--print_card", action="store_true", help="print the card, send nothing")
    push.set_defaults(run=run_push)


def run_push(arguments: argparse.Namespace) -> int:
    """Send a folder, and print the address.

    Raises:
        ConfigError: the folder is no model, no run is known, or the hub refuses.
    """
    name = find_target(arguments.repo)
    folder = arguments.output / run_files.EXPORT
    folder = folder if folder.is_dir() else arguments.output
    paths = list_files(folder)
    run = find_run(folder, arguments.run_folder)
    base_folder = find_base(run)
    texts = {CARD: write_card(run, repo=name.repo, base_folder=base_folder)}
    if arguments.print_card:
        say(texts[CARD])
        return 0
    if ADAPTER in paths:
        texts[ADAPTER] = name_base(folder / ADAPTER, base_folder)
    log_to_screen()
    request = {
        "action": "push",
        "private": arguments.private,
        "paths": {path: str(folder / path) for path in paths if path not in texts},
        "texts": texts,
        "message": f"Add the model of {run.name}",
    }
    num_bytes = sum((folder / path).stat().st_size for path in paths)
    with show_progress(f"sending to {name.repo}", num_bytes) as advance:
        answer = ask_hub(name, request, while_waiting=lambda: advance(0))
    say(answer["url"])
    return 0


def find_target(repo: str) -> RemoteName:
    """The repository that a model goes to.

    Raises:
        ConfigError: it is no name, or on a hub that is not sent to.
    """
    wanted = f"REPO is {repo}; write it as OWNER/NAME, such as me/hunyuan-tuned"
    try:
        name = parse_model_name(repo if ":" in repo else f"hf:{repo}", hub="huggingface")
    except ConfigError as error:  # which speaks of the setting of a run
        raise ConfigError(wanted) from error
    if name is None or name.revision:
        raise ConfigError(wanted)
    if name.hub == "modelscope":
        raise ConfigError(
            f"REPO is {repo}, and models are sent to Hugging Face only; to ModelScope use its own "
            "`modelscope upload`, with the card of --print_card"
        )
    return name


def list_files(folder: Path) -> list[str]:
    """The files of a model or an adapter, those of folders inside too.

    Raises:
        ConfigError: the folder is neither.
    """
    if not any((folder / one).is_file() for one in ("config.json", ADAPTER)):
        raise ConfigError(
            f"OUT is {folder}, which holds neither config.json nor {ADAPTER}; give RUN, RUN/export "
            "or a folder that `hunyuan-train export`, `merge` or `quantize` has written"
        )
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]


def find_run(folder: Path, given: Path | None) -> RunRecord:
    """The run that made a model.

    Raises:
        ConfigError: it is not around its export, and not given.
    """
    run_folder = given or folder.resolve().parent
    if not (run_folder / run_files.METRICS).is_file():
        raise ConfigError(
            f"{run_folder} is no run, so there is nothing to write a card of {folder} from; give "
            "the run that it was made by with --run RUN"
        )
    return read_run(run_folder)


def name_base(path: Path, base_folder: Path | None) -> str:
    """An adapter's config in which the base has its name on the hub instead of a folder here."""
    config: dict[str, Any] = read_json_object(path)
    origin = read_origin(base_folder) if base_folder else {}
    if "repo" in origin:
        config["base_model_name_or_path"] = origin["repo"]
        config["revision"] = origin["commit"]
    return json.dumps(config, indent=2)

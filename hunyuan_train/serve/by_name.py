"""Which model a command is about: a folder, or a name on a hub, which is downloaded."""

import argparse
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.hub.models import fetch_description, fetch_weights
from hunyuan_train.hub.names import DEFAULT_FOLDER, SHOWN_FOLDER, TITLES, Hub, parse_model_name
from hunyuan_train.log import log_to_screen
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import (
    find_export,
    find_model_folder,
    is_adapter,
    read_base_name,
    refuse_base,
)
from hunyuan_train.serve.trained_pair import FLAG, FLAG_HELP, check_base


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model, for `place_model`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="model or adapter: its folder, RUN, or OWNER/NAME on a hub")
    add("--base", metavar="DIR", help="the adapter's base model (default: that of its training)")
    add(FLAG, action="store_true", help=FLAG_HELP)
    add("--tokenizer", type=Path, metavar="DIR", help="default: the model's")
    add("--hub", choices=tuple(TITLES), default="huggingface", help="hub of names that state none")
    add(
        "--download_dir",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"folder for downloads (default: {SHOWN_FOLDER})",
    )


def place_model(arguments: argparse.Namespace) -> None:
    """Put folders in the place of the names that a command was given.

    Raises:
        ConfigError: a hub does not give it, or it is of no family that is known here.
        ServeError: so it is with the base that an adapter names.
    """
    hub, download_dir = arguments.hub, arguments.download_dir.expanduser().absolute()
    found = find_folder(arguments.model, hub=hub, download_dir=download_dir)
    arguments.model = find_export(found)
    refuse_base(arguments.model, arguments.base)
    if arguments.base is not None:
        arguments.base = find_folder(arguments.base, hub=hub, download_dir=download_dir)
    elif is_adapter(arguments.model):
        base = read_base_name(arguments.model)
        if base in PRESETS or parse_model_name(base, hub=hub) is None:
            return
        try:
            arguments.base = find_folder(base, hub=hub, download_dir=download_dir)
        except ConfigError as error:
            raise ServeError(
                f"{arguments.model} belongs on the base model {base}, which is no folder here; say "
                f"where it lies with --base DIR. As a name on a hub: {error}"
            ) from error


def check_model(arguments: argparse.Namespace) -> ModelShape:
    """The shape of the model that a command is about, an adapter's base being the right one.

    Raises:
        ConfigError: a model of no family that is known here.
        ServeError: no model, or another base than the adapter was trained on.
    """
    folder = find_model_folder(arguments.model, base=arguments.base)
    if is_adapter(arguments.model) and not arguments.any_base:
        check_base(arguments.model, folder)
    return resolve_base(str(folder.absolute()))


def find_folder(text: str, *, hub: Hub, download_dir: Path) -> Path:
    """The folder that a path or a name on a hub stands for, downloaded where it is not here.

    Args:
        text: the path or the name.
        hub: that is meant by a name that tells none.
        download_dir: where downloads are kept.

    Raises:
        ConfigError: see `fetch_description`; or a model that is not of our families, whose weights
            are left where they are.
    """
    name = parse_model_name(text, hub=hub)
    if name is None:
        return Path(text)
    log_to_screen()
    folder, weights = fetch_description(name, download_dir, takes_adapters=True)
    if weights:
        if not is_adapter(folder):
            resolve_base(str(folder.absolute()))
        fetch_weights(weights)
    return folder

"""`hunyuan-train download`: a model or a data set by its name, before a run asks for it."""

import argparse
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.datasets import fetch_data
from hunyuan_train.hub.models import fetch_description, fetch_weights
from hunyuan_train.hub.names import DEFAULT_FOLDER, TITLES, parse_data_name, parse_model_name
from hunyuan_train.log import log_to_screen
from hunyuan_train.terminal import say


def add_download_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    download = subparsers.add_parser("download")
    download.description = (
        "Download what a run needs of a model on a hub, or one split of a data set, and print its "
        "folder. An interrupted download continues. Every file is compared with the hub's "
        "checksums. A run with such a name does the same before it starts."
    )
    download.add_argument(
        "name",
        metavar="NAME",
        help="OWNER/NAME, hf:OWNER/NAME or modelscope:OWNER/NAME, with an optional @REVISION. For "
        "a data set: hf:OWNER/NAME[/SUBSET][@REVISION][:SPLIT]",
    )
    download.add_argument("--data", action="store_true", help="NAME is a data set")
    download.add_argument("--hub", choices=tuple(TITLES), default="huggingface")
    download.add_argument("--download_dir", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    download.set_defaults(run=run_download)


def run_download(arguments: argparse.Namespace) -> int:
    """Download, and print where it is.

    Raises:
        ConfigError: the name is none, or a hub does not give it.
    """
    log_to_screen()
    download_dir = arguments.download_dir.expanduser().absolute()
    data = parse_data_name(arguments.name)
    if data and data.split and not arguments.data:
        raise ConfigError(f"{arguments.name} names a split, as data sets have them; add --data")
    if arguments.data:
        if data is None:
            raise ConfigError(f"{arguments.name} is no data set on a hub; write hf:OWNER/NAME")
        say(str(fetch_data(data, download_dir)))
        return 0
    model = parse_model_name(arguments.name, hub=arguments.hub)
    if model is None:
        raise ConfigError(
            f"{arguments.name} is no model on a hub; write OWNER/NAME, or hf:OWNER/NAME where a "
            "folder here has that name"
        )
    folder, weights = fetch_description(model, download_dir)
    if weights:
        fetch_weights(weights)
    say(str(folder))
    return 0

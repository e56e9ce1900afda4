"""Downloads the models and data sets that a run names on a hub, and puts folders in their place.

What describes a model comes first, and data. Its weights come last, when every rule is checked, the
data are read and the plan says that the run fits beside them: a mistake costs no 161 GB.
"""

import logging
from dataclasses import dataclass
from os.path import exists
from pathlib import Path

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import read_setting, with_settings
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.hub.datasets import fetch_data_names
from hunyuan_train.hub.download import check_room, is_whole
from hunyuan_train.hub.models import PendingWeights, fetch_description, fetch_weights
from hunyuan_train.hub.names import DEFAULT_FOLDER, RemoteName, parse_model_name
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.start.memory import check_memory
from hunyuan_train.launcher.start.prepare import prepare_run
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.log import log_to_screen
from hunyuan_train.terminal import PlainConsole

logger = logging.getLogger(__name__)

DATA_SETTINGS = ("train_data_file", "eval_data_file")


@dataclass(frozen=True, slots=True)
class NamedInputs:
    """A run whose inputs all lie here, but for weights that are still to come."""

    config: RunConfig
    weights: PendingWeights | None = None


def remote_model(config: RunConfig, setting: str = "model_name_or_path") -> RemoteName | None:
    """The name on a hub that a setting of the model gives, if it gives one."""
    text = read_setting(config, setting)
    if text is None or text in PRESETS:
        return None
    return parse_model_name(text, hub=config.launch.hub)


def download_folder(config: RunConfig) -> Path:
    """Where downloads are kept."""
    return Path(config.launch.download_dir or DEFAULT_FOLDER).absolute()


def fetch_all_but_weights(config: RunConfig) -> NamedInputs:
    """Download what a run names on hubs, weights left out.

    Raises:
        ConfigError: a hub does not give it; see `hub/ask.py`.
    """
    model, tokenizer = remote_model(config), remote_model(config, "tokenizer_name_or_path")
    data = {name: read_setting(config, name) for name in DATA_SETTINGS}
    if model or tokenizer or any(":" in (names or "") for names in data.values()):
        log_to_screen()
    download_dir = download_folder(config)
    replaced: dict[str, str] = {}
    weights = None
    if model:
        folder, weights = fetch_description(model, download_dir)
        replaced["model_name_or_path"] = str(folder)
        logger.info("%s is kept in %s", model, folder)
    if tokenizer:
        folder, _ = fetch_description(tokenizer, download_dir)
        replaced["tokenizer_name_or_path"] = str(folder)
    for setting, names in data.items():
        if names:
            replaced[setting] = fetch_data_names(names, download_dir=download_dir)
    return NamedInputs(with_settings(config, **replaced), weights)


def fetch_checked_weights(inputs: NamedInputs, cluster: Cluster, machine: Machine) -> None:
    """Download the weights, once nothing else is known to be wrong with the run.

    Args:
        inputs: of the run.
        cluster: its hosts. Those besides this one find the folder on a disk that all share, or
            get it with --sync.
        machine: this one.

    Raises:
        ConfigError: a rule that the run breaks, data or memory or disk that will not do, a hub.
    """
    weights = inputs.weights
    if weights is None:
        return
    num_bytes = weights.num_bytes
    check_room(weights.repository.name, weights.folder, num_bytes)
    if cluster.is_alone:
        run = resolve_here(inputs.config, machine=machine, slots=cluster.slots, has_weights=False)
        prepared = prepare_run(run)
        shares_disk = _device(weights.folder) == _device(Path(run.config.train.output_dir))
        check_memory(
            prepared, PlainConsole(quiet=True), reserved_bytes=num_bytes if shares_disk else 0
        )
    fetch_weights(weights)


def describe_download(weights: PendingWeights) -> str:
    """What a run would download, for a dry run, which leaves it there."""
    return (
        f"download   {weights.num_bytes / 1e9:,.2f} GB of weights of {weights.repository.name} "
        f"into {weights.folder}"
    )


def locate_downloads(config: RunConfig) -> RunConfig:
    """The same run with the folders of what it names; for a rank, which downloads nothing.

    Raises:
        ConfigError: it is not here.
    """
    replaced = {}
    for setting in ("model_name_or_path", "tokenizer_name_or_path"):
        if name := remote_model(config, setting):
            folder = name.folder(download_folder(config))
            if not is_whole(folder):
                raise ConfigError(
                    f"{setting} is {name.written}, of which {folder} is no whole copy; download it "
                    f"first, with `hunyuan-train download {name.written}`"
                )
            replaced[setting] = str(folder)
    for setting in DATA_SETTINGS:
        if names := read_setting(config, setting):
            # Finds what the launcher has downloaded, and asks a hub for nothing then.
            replaced[setting] = fetch_data_names(names, download_dir=download_folder(config))
    return with_settings(config, **replaced)


def _device(folder: Path) -> int:
    """The disk that a folder is on, or will be."""
    paths = (folder, *folder.absolute().parents)
    return next(path for path in paths if exists(path)).stat().st_dev

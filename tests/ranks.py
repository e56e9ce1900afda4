"""Runs a function on several ranks, over gloo."""

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from rich.console import Console

from hunyuan_train.launcher.host.extension import (
    SHARED_MEMORY,
    Extension,
    extensions_folder,
    prepare_extension,
)
from hunyuan_train.selftest import local_ranks as ranks

PRELOADED = ["tests.preload"]
TIMEOUT_SECONDS = 240


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call a module-level function on every rank and return what each returned."""
    prepare()
    return ranks.run_ranks(
        function, world_size, *arguments, preload=PRELOADED, timeout_seconds=TIMEOUT_SECONDS
    )


def start_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any
) -> list[tuple[BaseProcess, Connection]]:
    """Start a module-level function on every rank; whoever starts them must end them."""
    prepare()
    return ranks.start_ranks(function, world_size, *arguments, preload=PRELOADED)


def prepare(*others: Extension) -> None:
    """Do what the launcher does for ranks: a test that killed some may have left a lock."""
    for extension in (SHARED_MEMORY, *others):
        prepare_extension(
            extension,
            folder=extensions_folder(os.environ),
            environment=os.environ,
            console=Console(stderr=True),
        )

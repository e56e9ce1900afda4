"""Runs a function on several ranks, over gloo."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from hunyuan_train.launcher import ranks

PRELOADED = ["tests.preload"]
TIMEOUT_SECONDS = 240


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call a module-level function on every rank and return what each returned."""
    return ranks.run_ranks(
        function, world_size, *arguments, preload=PRELOADED, timeout_seconds=TIMEOUT_SECONDS
    )


def start_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any
) -> list[tuple[BaseProcess, Connection]]:
    """Start a module-level function on every rank; whoever starts them must end them."""
    return ranks.start_ranks(function, world_size, *arguments, preload=PRELOADED)

"""Runs a function on several ranks, over gloo."""

import os
from collections.abc import Callable, Sequence
from functools import cache
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


def run_each(
    function: Callable[..., Any], world_size: int, cases: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Call a module-level function for one case after the other; what each rank returned, by case.

    All cases share one launch, because starting ranks takes as long as most of what they do. A rank
    ends the engines of a case before the next one.
    """
    prepare()
    results = ranks.run_ranks(
        _call_each,
        world_size,
        function,
        cases,
        preload=PRELOADED,
        timeout_seconds=TIMEOUT_SECONDS * len(cases),
    )
    return [list(by_rank) for by_rank in zip(*results, strict=True)]


@cache
def run_together(
    function: Callable[..., Any], world_size: int, cases: tuple[tuple[Any, ...], ...]
) -> dict[tuple[Any, ...], list[Any]]:
    """`run_each` for all tests that give the same cases, at the first one's call."""
    return dict(zip(cases, run_each(function, world_size, cases), strict=True))


def _call_each(function: Callable[..., Any], cases: Sequence[Sequence[Any]]) -> list[Any]:
    from tests.engines import end_engines  # the tests' own process need not import the engine

    results = []
    for case in cases:
        results.append(function(*case))
        end_engines()
    return results


def start_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any
) -> list[tuple[BaseProcess, Connection]]:
    """Start a module-level function on every rank; whoever starts them must end them."""
    prepare()
    return ranks.start_ranks(function, world_size, *arguments, preload=PRELOADED)


def prepare(*others: Extension) -> None:
    """Do what the launcher does for ranks: a test that killed some may have left a lock."""
    folder = extensions_folder(os.environ)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)  # for benchmarks, which no conftest prepares
    for extension in (SHARED_MEMORY, *others):
        prepare_extension(
            extension,
            folder=folder,
            environment=os.environ,
            console=Console(stderr=True),
        )

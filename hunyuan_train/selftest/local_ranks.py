"""Runs a function on several ranks of this machine, each a process of its own.

The processes fork from a server that has imported torch and deepspeed once (7 s), and have no other
state in common with each other or with the caller.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from hunyuan_train.launcher.host.extension import hold_extensions


class RanksError(RuntimeError):
    """A rank raised, died or took too long; the text holds its traceback."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: object,
    preload: Sequence[str],
    timeout_seconds: float,
) -> list[Any]:
    """Call a module-level function on every rank and return what each returned.

    Args:
        function: found by its name in the ranks.
        world_size: ranks to start.
        arguments: of the function, the same for every rank.
        preload: modules that the server imports before its first rank; later calls change nothing.
        timeout_seconds: the longest wait for the next rank to come back.

    Raises:
        RanksError: on the first failure; the other ranks are ended.
    """
    ranks = start_ranks(function, world_size, *arguments, preload=preload)
    try:
        return _collect([receiver for _, receiver in ranks], timeout_seconds)
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def start_ranks(
    function: Callable[..., Any], world_size: int, *arguments: object, preload: Sequence[str]
) -> list[tuple[BaseProcess, Connection]]:
    """Start a module-level function on every rank; whoever starts them must end them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks: list[tuple[BaseProcess, Connection]] = []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_call, args=(sender, rank, world_size, port, function, arguments), daemon=True
        )
        process.start()
        sender.close()
        ranks.append((process, receiver))
    return ranks


def _collect(receivers: list[Connection], timeout_seconds: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(receivers):
        waiting = [receiver for receiver in receivers if receiver not in results]
        ready = wait(waiting, timeout_seconds)
        if not ready:
            raise RanksError(
                f"only {len(results)} of {len(receivers)} ranks came back in {timeout_seconds} s"
            )
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                is_result, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                is_result, value = False, "a rank died without a word"
            if not is_result:
                raise RanksError(value)
            results[receiver] = value
    return [results[receiver] for receiver in receivers]


def _call(
    sender: Connection,
    rank: int,
    world_size: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    hold_extensions(os.environ)
    try:
        outcome = (True, function(*arguments))
    except BaseException:  # noqa: BLE001  whatever it was, the caller must see it
        outcome = (False, f"rank {rank}:\n{traceback.format_exc()}")
    # Bytes, because multiprocessing would lend tensors by file handle, and this process ends now.
    sender.send_bytes(pickle.dumps(outcome))

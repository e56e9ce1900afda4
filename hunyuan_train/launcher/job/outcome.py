"""How a job ended, and why: which of many failures was the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import EXIT_UNREACHABLE, explain
from hunyuan_train.launcher.exit_codes import (
    FAILURE,
    HOST_LOST,
    KILLED,
    NO_ROOM,
    NOT_COPIED,
    RESUME,
    SUCCESS,
    TERMINATED,
    USER_ERROR,
)
from hunyuan_train.launcher.job.node import Failure, Node

Reason = Literal["done", "stopped", "failed", "lost", "hung", "unready"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of one try of a run on all its hosts."""

    reason: Reason
    exit_code: int
    words: str = ""  # for the user: the host and what went wrong there
    host: Host | None = None  # where it went wrong first
    lost: tuple[Host, ...] = ()  # hosts that did not answer in the end
    step: int = 0  # the most steps that a rank had done


def conclude(nodes: Sequence[Node], *, launch: LaunchConfig) -> Outcome:
    """The outcome of a job whose nodes have all ended or do not answer."""
    step = last_step(nodes)
    lost = tuple(node.host for node in nodes if is_lost(node))
    if not lost and all(node.exit_code == SUCCESS for node in nodes):
        return Outcome(reason="done", exit_code=SUCCESS, step=step)
    first, failure = find_first_failure(nodes)
    if failure and (not lost or was_killed(failure)):
        return Outcome(
            reason="failed",
            exit_code=failure.exit_code,
            words=name_host(first, failure.words, nodes),
            host=first.host,
            lost=lost,
            step=step,
        )
    if lost:
        node = next(node for node in nodes if is_lost(node))
        words = f"error: host {describe_loss(node, launch)}"
        return Outcome(
            reason="lost",
            exit_code=HOST_LOST,
            words=words,
            host=node.host,
            lost=lost,
            step=step,
        )
    failed = [node for node in nodes if node.exit_code != SUCCESS]
    node = min(failed, key=lambda node: node.was_told_to_end)  # those were ended for another's sake
    return Outcome(
        reason="failed",
        exit_code=node.exit_code or FAILURE,
        words=name_host(node, describe_silent_end(node), nodes),
        host=node.host,
        step=step,
    )


def was_killed(failure: Failure) -> bool:
    """Whether a rank was ended by a signal; SIGTERM is how the others of its node are stopped."""
    return failure.exit_code > 128 and failure.exit_code != TERMINATED


def find_first_failure(nodes: Sequence[Node]) -> tuple[Node, Failure | None]:
    """The failure that led to the others.

    A killed rank says nothing, while those it leaves behind complain of a lost connection; among
    ranks that ended by themselves the first is the cause.
    """
    failed = [(node, node.failure) for node in nodes if node.failure]
    failed.sort(key=lambda pair: (not was_killed(pair[1]), pair[1].time - pair[0].clock_ahead))
    return failed[0] if failed else (nodes[0], None)


def last_step(nodes: Sequence[Node]) -> int:
    """The most optimizer steps that a rank has reported."""
    return max((one.step for node in nodes for one in node.progress.values()), default=0)


def is_lost(node: Node) -> bool:
    """Whether a node stopped answering, or never answered."""
    is_cut_off = node.exit_code == EXIT_UNREACHABLE and node.failure is None
    return node.is_silent or not node.is_over or is_cut_off


def name_host(node: Node, words: str, nodes: Sequence[Node]) -> str:
    """The words with the host in front, where there is more than one."""
    return words if len(nodes) == 1 else f"host {node.host.address}: {words}"


def describe_loss(node: Node, launch: LaunchConfig) -> str:
    """That a host was lost, and how."""
    if node.is_over and not node.has_started:
        trouble = explain("\n".join(node.tail), node.host, launch)
        return f"{node.host.address} cannot be reached: {trouble.found}; {trouble.remedy}"
    return (
        f"{node.host.address} does not answer any more: it crashed, the network to it is "
        "cut, or its sshd or agent was killed. If it lives, it ends its part of the run within "
        f"{launch.host_timeout_seconds:g} s of the last contact"
    )


def describe_silent_end(node: Node) -> str:
    """What is known of a node that ended without the words of a rank."""
    end = f"this part of the run ended with exit code {node.exit_code}"
    if node.exit_code == KILLED and not node.was_told_to_end:
        end = (
            "what starts and watches the ranks was killed (SIGKILL), and they with it; if nobody "
            "did, the machine ran out of memory: see `dmesg`"
        )
    lines = "\n".join(node.tail)
    return f"error: {end}" + (f"; its last lines:\n{lines}" if lines else "")


def is_restartable(outcome: Outcome) -> bool:
    """Whether another try could end better: not after a stop, or a mistake of the user's."""
    return outcome.reason in ("failed", "lost", "hung") and outcome.exit_code not in (
        USER_ERROR,
        NO_ROOM,
        NOT_COPIED,
        RESUME,
    )

"""What a hang is about: which rank keeps the others waiting, and in which collective."""

from collections.abc import Iterator, Sequence

from hunyuan_train.launcher.exit_codes import FAILURE
from hunyuan_train.launcher.job.node import Node
from hunyuan_train.launcher.job.outcome import Outcome, last_step
from hunyuan_train.launcher.rank.collectives import Collective, describe
from hunyuan_train.launcher.rank.heartbeat import STARTING, TRAINING, RankStatus

STANDING_STILL = ("stopped", "tracing stop", "disk sleep", "zombie", "ended")
Standing = tuple[Node, RankStatus]  # where a rank stood, and its host


def describe_hang(nodes: Sequence[Node], seconds: float) -> Outcome:
    """The outcome of a job in which nothing went on for too long, with the ranks at fault."""
    statuses = [(node, one) for node in nodes for one in node.statuses]
    silent = [node for node in nodes if len(node.statuses) < (node.host.slots or 1)]
    guilty = [(node, f"{name_rank(node, one)}{why}") for node, one, why in find_guilty(statuses)]
    guilty += [
        (
            node,
            f"{len(node.statuses)} of {node.host.slots or 1} ranks on {node.host.address} say "
            "where they stand",
        )
        for node in silent
    ]
    where = "; ".join(words for _, words in guilty) or describe_deadlock(statuses)
    return Outcome(
        reason="hung",
        exit_code=FAILURE,
        words=f"error: {describe_stage(nodes)} for {seconds:g} s (--hang_timeout_seconds): {where}",
        host=guilty[0][0].host if guilty else None,
        step=last_step(nodes),
    )


def name_rank(node: Node, one: RankStatus) -> str:
    """A rank and what it does."""
    return f"rank {one.rank} on {node.host.address} is {one.state}, {one.progress.doing}"


def describe_stage(nodes: Sequence[Node]) -> str:
    """What did not go on, by what the first rank that says so was at."""
    doing = [one.doing for node in nodes for one in node.progress.values()]
    if not doing or doing[0] == STARTING:
        return "the start got no further"
    return "no step ended" if doing[0] == TRAINING else f"nothing moved on while {doing[0]}"


def find_guilty(statuses: Sequence[Standing]) -> Iterator[tuple[Node, RankStatus, str]]:
    """The ranks that do not run, that cannot say where they stand, or that are behind.

    Yields:
        each with its host, and of one that is behind, in which collective others wait for it.
    """
    waits = list(find_waits(statuses))
    for node, one in statuses:
        if one.state in STANDING_STILL or (waits and not one.collectives):
            yield node, one, ""
        elif awaited := next((wait for wait in waits if is_behind(one, wait)), None):
            yield node, one, f", and has not begun {describe(awaited)}, which others wait in"


def find_waits(statuses: Sequence[Standing]) -> Iterator[Collective]:
    """Of each group, the first collective that a rank waits in; the oldest of all first."""
    waiting = [one for _, status in statuses for one in status.collectives if not one.is_complete]
    waiting.sort(key=lambda one: -one.age_seconds)
    for group in dict.fromkeys(one.group for one in waiting):
        yield min((one for one in waiting if one.group == group), key=lambda one: one.number)


def is_behind(one: RankStatus, awaited: Collective) -> bool:
    """Whether a rank of the group has not begun a collective that others wait in."""
    own = next((other for other in one.collectives if other.group == awaited.group), None)
    if own is None:  # it has begun none of this group's: where members are known, it may be one
        return one.rank in awaited.ranks
    return own.num_begun < awaited.number


def describe_deadlock(statuses: Sequence[Standing]) -> str:
    """What ranks wait in, none of which is behind."""
    wait = next(find_waits(statuses), None)
    if wait is None:
        return "no rank waits in a collective; the stacks say where each stands"
    ranks: dict[str, list[int]] = {}
    for _, status in statuses:
        for one in status.collectives:
            if (one.group, one.number, one.is_complete) == (wait.group, wait.number, False):
                ranks.setdefault(one.name, []).append(status.rank)
    if len(ranks) > 1:
        called = "; ".join(f"{name} on ranks {sorted(ranks[name])}" for name in sorted(ranks))
        return (
            f"ranks call different collectives as number {wait.number} of group {wait.group}: "
            f"{called}"
        )
    if len(next(iter(ranks.values()))) == len(statuses):
        return f"all ranks stand in the same collective, {describe(wait)}"
    waiting = ", ".join(str(rank) for rank in sorted(next(iter(ranks.values()))))
    return f"none of its ranks is behind, and in {describe(wait)}, these wait: {waiting}"


def write_standings(nodes: Sequence[Node]) -> str:
    """Where every rank stood, as text for a file."""
    parts = [
        f"== rank {one.rank} on {node.host.address}: {one.state}, {one.progress.doing}, "
        f"{one.progress.step} steps done\n{list_collectives(one)}\n"
        f"{one.stacks or 'no stacks: the process does not answer'}\n"
        for node in nodes
        for one in node.statuses
    ]
    return "\n".join(parts)


def list_collectives(one: RankStatus) -> str:
    """The collectives of a rank, one line for each group."""
    lines = [
        f"last collective, completed: {describe(collective)}"
        if collective.is_complete
        else f"oldest collective not completed: {describe(collective)}; begun "
        f"{collective.age_seconds:.1f} s before, {collective.num_begun - collective.number} "
        "more begun since"
        for collective in one.collectives
    ]
    return "\n".join(lines) or "last collective: unknown"

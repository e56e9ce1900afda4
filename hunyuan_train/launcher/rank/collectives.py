"""Where a rank stands among its collectives, read from torch's flight recorders.

A GPU works behind its rank: the last collective that was begun only shows how far the rank ran
ahead. What a hang is about is the oldest one that has not completed, group by group.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """The oldest collective of a group that this rank has not completed, or the last if it has."""

    group: str  # name, and what it is for, where that is said
    number: int  # among the group's collectives, which all its ranks count alike
    name: str  # with its backend: nccl:all_reduce
    sizes: list[list[int]]  # of its inputs
    is_complete: bool
    num_begun: int  # the number of the group's newest
    ranks: list[int]  # of the group; empty where the recorder does not know them, as for gloo
    age_seconds: float  # since it was begun


def read_collectives(traces: Iterable[bytes], *, now_ns: int) -> list[Collective]:
    """One collective for each group of each recorder, the oldest first.

    Args:
        traces: JSON, of the recorder of NCCL and of that of all other backends.
        now_ns: the time, by the same clock.
    """
    found = [one for trace in traces for one in _read_trace(json.loads(trace), now_ns)]
    return sorted(found, key=lambda one: (one.is_complete, -one.age_seconds))


def _read_trace(trace: Mapping[str, Any], now_ns: int) -> Iterable[Collective]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in trace.get("entries", []):
        # Messages between two ranks are counted apart; nothing here sends any.
        if not entry["is_p2p"]:
            groups.setdefault(entry["process_group"][0], []).append(entry)
    for name, entries in groups.items():
        entries.sort(key=lambda entry: entry["record_id"])
        waiting = [entry for entry in entries if not is_complete(entry)]
        entry = (waiting or entries[-1:])[0]
        yield Collective(
            group=_describe_group(*entry["process_group"]),
            number=entry["collective_seq_id"],
            name=entry["profiling_name"],
            sizes=entry["input_sizes"],
            is_complete=not waiting,
            num_begun=entries[-1]["collective_seq_id"],
            ranks=json.loads(trace["pg_config"].get(name, {}).get("ranks", "[]")),
            age_seconds=(now_ns - entry["time_created_ns"]) / 1e9,
        )


def is_complete(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a recorder is done.

    gloo's entries stay "scheduled" and are retired once done. NCCL's are "completed" once the GPU
    is through with them; one that is retired before has timed out.
    """
    if entry["profiling_name"].startswith("nccl:"):
        return bool(entry["state"] == "completed")
    return bool(entry["retired"])


def _describe_group(name: str, purpose: str) -> str:
    return f"{name} ({purpose})" if purpose not in ("", "undefined") else name


def describe(one: Collective) -> str:
    """A collective in words."""
    return f"{one.name} {one.sizes}, number {one.number} of group {one.group}"

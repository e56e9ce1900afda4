"""What ZeRO-3 has gathered at each moment of a micro-step: the engine's queue, played on sizes.

The engine gathers a module's weights when it is entered. From the second step on it also fetches
ahead, in the order that it has seen, and keeps what is needed again soon. That is a long way ahead:
up to `stage3_max_live_parameters` elements, several layers. Where the experts of a rank lie on
several machines, they are among what is fetched (partitioned_param_coordinator.py).
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate

from hunyuan_train.planner.layers import Module, Weight


class Hook(Enum):
    """When the engine is told of a module."""

    ENTER = "before it runs"
    LEAVE = "after it ran"
    ENTER_AGAIN = "before it is recomputed"
    LEAVE_AGAIN = "after it was recomputed"
    ENTER_BACKWARD = "before its backward"
    LEAVE_BACKWARD = "after its backward"


ENTERING = (Hook.ENTER, Hook.ENTER_AGAIN, Hook.ENTER_BACKWARD)


@dataclass(frozen=True, slots=True)
class Event:
    """The engine is told of a module."""

    hook: Hook
    module: Module


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's settings, in elements."""

    prefetched: int  # stage3_prefetch_bucket_size, at each module
    live: int  # stage3_max_live_parameters
    reuse: int  # stage3_max_reuse_distance


@dataclass(eq=False, slots=True)
class Fetch:
    """Weights that are asked for at once: each group's in one buffer, until all have been used."""

    waiting: set[Weight]  # that no module has waited for
    copied: tuple[Weight, ...]  # which are taken out of a buffer that they share
    is_there: bool = False


@dataclass(slots=True)
class Gathered:
    """Elements that are gathered after each event."""

    trace: Sequence[Event]
    limits: Limits
    is_again: bool  # layers are recomputed
    after: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)  # elements that the engine counts as live
    within: list[int] = field(default_factory=list)  # the most, while the engine is told of it
    copied: dict[Hook, int] = field(default_factory=dict)  # elements taken out of shared buffers
    fetches: dict[Weight, Fetch] = field(default_factory=dict)  # in flight
    live: set[Weight] = field(default_factory=set)  # fetched or in flight
    users: dict[Weight, set[Module]] = field(default_factory=dict)
    attributed: dict[Module, set[Weight]] = field(default_factory=dict)  # to be freed behind it
    active: dict[Module, None] = field(default_factory=dict)  # in their backward
    last_use: dict[Weight, int] = field(default_factory=dict)  # step that it was fetched for
    held: set[Weight] = field(default_factory=set)  # saved by autograd, whatever the engine frees
    freed: set[Weight] = field(default_factory=set)  # of these, those that it has freed
    num_live: int = 0  # elements that the engine counts as live
    fetched: int = 0  # elements that were asked for in all
    elements: int = 0
    most: int = 0  # since an event began
    step: int = 0

    def play(self) -> None:
        """Take down the elements of each event."""
        entered = [event.module for event in self.trace if event.hook in ENTERING]
        starts = [0, *accumulate(module.numel for module in entered)]
        uses: dict[Weight, list[int]] = {}
        for step, module in enumerate(entered):
            for weight in module.weights:
                uses.setdefault(weight, []).append(step)
        queue = deque(
            (weight, step) for step, module in enumerate(entered) for weight in module.weights
        )
        for event in self.trace:
            self.most = self.elements
            if event.hook in ENTERING:
                self.enter(event, queue)
            else:
                self.leave(event, uses, starts)
            self.after.append(self.elements)
            self.counted.append(self.num_live)
            self.within.append(self.most)

    def add(self, elements: int) -> None:
        """More is there."""
        self.elements += elements
        self.most = max(self.most, self.elements)

    def enter(self, event: Event, queue: deque[tuple[Weight, int]]) -> None:
        """Fetch what a module needs and wait for it; then fetch ahead."""
        module = event.module
        if event.hook is Hook.ENTER_BACKWARD:
            self.active[module] = None
        self.fetch([one for one in module.weights if one not in self.live])
        for weight in module.weights:
            self.users.setdefault(weight, set()).add(module)
            if event.hook is Hook.ENTER_AGAIN and not weight.is_trained:
                owner = next(reversed(self.active))
                self.attributed.setdefault(owner, set()).add(weight)
                self.users[weight].add(owner)
            if weight in self.fetches:
                self.wait_for(weight, event.hook)
        if module.is_saved and event.hook is (Hook.ENTER_AGAIN if self.is_again else Hook.ENTER):
            self.held.update(module.weights)
        seen: set[Weight] = set()
        new = {one for one in module.weights if self.last_use.get(one, -1) < self.step}
        while queue and len(seen) < len(new):
            weight, step = queue.popleft()
            self.last_use[weight] = step
            seen.add(weight)
        self.fetch_ahead(queue)
        self.step += 1

    def fetch_ahead(self, queue: deque[tuple[Weight, int]]) -> None:
        """Ask for the next weights that will be needed."""
        room = min(self.limits.live - self.num_live, self.limits.prefetched)
        wanted: dict[Weight, None] = {}
        number = 0
        while queue and number < room:
            weight, step = queue.popleft()
            self.last_use[weight] = max(self.last_use.get(weight, -1), step)
            if weight not in self.live and weight not in wanted:
                wanted[weight] = None
                number += weight.numel
        self.fetch(list(wanted))

    def fetch(self, weights: list[Weight]) -> None:
        """Ask for weights at once."""
        if not weights:
            return
        groups: dict[int, list[Weight]] = {}
        for one in weights:
            groups.setdefault(one.num_partitions, []).append(one)
        shared = tuple(one for group in groups.values() if len(group) > 1 for one in group)
        fetch = Fetch(set(weights), shared)
        self.fetches |= dict.fromkeys(weights, fetch)
        self.live |= set(weights)
        number = sum(one.numel for one in weights)
        self.num_live += number
        self.fetched += number
        self.add(sum(one.buffered for one in weights))

    def wait_for(self, weight: Weight, hook: Hook) -> None:
        """Take all weights of a fetch out of their buffer; it is freed with the last one's use."""
        fetch = self.fetches.pop(weight)
        if not fetch.is_there:
            fetch.is_there = True
            elements = sum(one.buffered for one in fetch.copied)
            self.copied[hook] = self.copied.get(hook, 0) + elements
            self.add(elements)
        fetch.waiting.discard(weight)
        if not fetch.waiting:
            self.elements -= sum(one.buffered for one in fetch.copied)

    def leave(self, event: Event, uses: dict[Weight, list[int]], starts: list[int]) -> None:
        """Free what is not needed again soon."""
        module = event.module
        is_backward = event.hook is Hook.LEAVE_BACKWARD
        leaving = {one for one in module.weights if not self.is_needed(one, uses, starts)}
        touched = set(module.weights)
        if is_backward:
            attributed = self.attributed.pop(module, set())
            leaving |= attributed
            touched |= attributed
            self.active.pop(module, None)
            self.let_go(module)
        for weight in touched:
            self.users.get(weight, set()).discard(module)
            is_free = not self.users.get(weight) and weight not in self.fetches
            if is_free and weight in leaving and weight in self.live:
                self.free(weight)

    def let_go(self, module: Module) -> None:
        """Autograd is done with a module."""
        done = self.freed.intersection(module.weights)
        self.elements -= sum(one.buffered for one in done)
        self.freed -= done
        self.held.difference_update(module.weights)

    def is_needed(self, weight: Weight, uses: dict[Weight, list[int]], starts: list[int]) -> bool:
        """Whether a weight is used again within the distance that the engine looks ahead."""
        if self.last_use.get(weight, -1) > self.step:
            return True
        steps = uses[weight]
        index = bisect_left(steps, self.step)
        if index == len(steps):
            return False
        return starts[steps[index]] - starts[self.step] < self.limits.reuse

    def free(self, weight: Weight) -> None:
        """The engine frees a weight; autograd may hold it."""
        self.live.discard(weight)
        self.num_live -= weight.numel
        if weight in self.held:
            self.freed.add(weight)
        else:
            self.elements -= weight.buffered


def walk_micro_step(root: Module, *, is_again: bool) -> Iterator[Event]:
    """All events of a micro-step, in order."""
    yield from walk_forward(root)
    yield from walk_backward(root, is_again=is_again)


def walk_forward(
    module: Module, enter: Hook = Hook.ENTER, leave: Hook = Hook.LEAVE
) -> Iterator[Event]:
    """A module and those in it, as they run."""
    yield Event(enter, module)
    for one in module.children * module.num_runs:
        yield from walk_forward(one, enter, leave)
    yield Event(leave, module)


def walk_backward(module: Module, *, is_again: bool) -> Iterator[Event]:
    """A module and those in it, in reverse."""
    if not module.has_gradient:
        return
    yield Event(Hook.ENTER_BACKWARD, module)
    if module.is_layer and is_again:
        yield from walk_recomputed(module)
    elif module.num_runs > 1:
        yield from walk_runs(module, module.num_runs)
    else:
        for one in reversed(module.children):
            yield from walk_backward(one, is_again=is_again)
    yield Event(Hook.LEAVE_BACKWARD, module)


def walk_runs(module: Module, number: int) -> Iterator[Event]:
    """The backward of runs of a module, each of which is computed again before."""
    for _ in range(number):
        yield from walk_recomputed(module)


def walk_recomputed(module: Module) -> Iterator[Event]:
    """Modules are entered down to the one that ran last; then all run again, and backward."""
    path = [module]
    while path[-1].children:
        path.append(path[-1].children[-1])
    yield from (Event(Hook.ENTER_BACKWARD, one) for one in path[1:])
    # Torch stops as soon as it has what it needs: inside of the module that ran last.
    unfinished = path[1:]
    again = [
        event
        for one in module.children
        for event in walk_forward(one, Hook.ENTER_AGAIN, Hook.LEAVE_AGAIN)
    ]
    stop = len(again) - len(unfinished)
    assert [event.module for event in again[stop:]] == unfinished[::-1]
    yield from again[:stop]
    yield from walk_entered(path)


def walk_entered(path: Sequence[Module]) -> Iterator[Event]:
    """What is left of the backward of a module in which those on a path have been entered."""
    module, *inner = path
    children = list(reversed(module.children))
    if inner:
        yield from walk_entered(inner)
        yield from walk_runs(inner[0], inner[0].num_runs - 1)
        yield Event(Hook.LEAVE_BACKWARD, inner[0])
        children = children[1:]
    for one in children:
        yield from walk_backward(one, is_again=False)

"""What a hang is about: the oldest collective that has not completed, and who does not come."""

import time

import pytest

from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.host.node_agent import Spec
from hunyuan_train.launcher.job.hang import describe_hang, list_collectives, write_standings
from hunyuan_train.launcher.job.node import Job, Node
from hunyuan_train.launcher.rank.collectives import read_collectives
from hunyuan_train.launcher.rank.heartbeat import Progress, RankStatus
from tests.launcher.nccl_recorder import Recorder

SPEC = Spec(
    commands=[], environment={}, files={}, working_folder="/", lease_seconds=1, stop_seconds=1
)
WORLD, EXPERTS = "0", "5"
GROUPS = {WORLD: [0, 1], EXPERTS: [0, 1]}


def status(rank, recorder=None, state="running"):
    traces = [recorder.dump_json()] if recorder else []
    found = read_collectives(traces, now_ns=time.time_ns())
    return RankStatus(rank, Progress(5, "training"), state, found, "stacks")


def hang(*statuses):
    nodes = []
    for one in statuses:
        node = Node(Job(host=Host("ab"[one.rank], 1), command=[], spec=SPEC), None)
        node.statuses, node.progress = [one], {one.rank: one.progress}
        nodes.append(node)
    outcome = describe_hang(nodes, 60)
    assert outcome.exit_code == 1
    return outcome, nodes


def recorders():
    return Recorder(GROUPS), Recorder(GROUPS)


def test_a_rank_that_is_stopped_is_named():
    ahead, _ = recorders()
    ahead.begin(WORLD, "all_reduce", [3])
    outcome, _ = hang(status(0, ahead, "sleeping"), status(1, state="stopped"))
    assert "rank 1 on b is stopped, training" in outcome.words
    assert "rank 0" not in outcome.words


def test_the_culprit_is_the_oldest_collective_and_not_the_last_that_was_begun():
    """Both ranks have handed over the same number of collectives, of two groups."""
    first, second = recorders()
    for recorder in (first, second):
        for _ in range(20):
            recorder.begin(WORLD, "all_gather", [8])
        recorder.complete(20)
    first.begin(EXPERTS, "all_to_all", [4, 2])  # rank 1 leaves this one out
    for recorder in (first, second):
        for _ in range(10):
            recorder.begin(WORLD, "reduce_scatter", [8])
    second.begin(WORLD, "all_reduce", [1])
    outcome, nodes = hang(status(0, first), status(1, second))
    assert (
        "rank 1 on b is running, training, and has not begun nccl:all_to_all [[4, 2]], number 1 of "
        "group 5, which others wait in"
    ) in outcome.words
    assert outcome.host == Host("b", 1)
    text = write_standings(nodes)
    assert "oldest collective not completed: nccl:all_to_all [[4, 2]], number 1 of group 5" in text
    assert (
        "nccl:reduce_scatter [[8]], number 21 of group 0 (default_pg); begun 0.0 s before, 9 more "
        "begun since"
    ) in text


def test_a_rank_that_is_no_member_of_the_group_is_not_blamed():
    first, second = Recorder({WORLD: [0, 1], "7": [0]}), Recorder({WORLD: [0, 1]})
    for recorder in (first, second):
        recorder.begin(WORLD, "all_reduce", [3])
    first.begin("7", "broadcast", [3])
    outcome, _ = hang(status(0, first), status(1, second))
    assert "all ranks stand in the same collective, nccl:all_reduce [[3]]" in outcome.words
    assert outcome.host is None


def test_ranks_that_call_different_collectives_are_told_apart():
    first, second = recorders()
    first.begin(WORLD, "all_reduce", [3])
    second.begin(WORLD, "broadcast", [3])
    outcome, _ = hang(status(0, first), status(1, second))
    assert (
        "ranks call different collectives as number 1 of group 0 (default_pg): nccl:all_reduce on "
        "ranks [0]; nccl:broadcast on ranks [1]"
    ) in outcome.words


def test_a_rank_that_cannot_say_where_it_stands_is_named():
    first, _ = recorders()
    first.begin(WORLD, "all_reduce", [3])
    outcome, nodes = hang(status(0, first), status(1))
    assert "rank 1 on b is running, training" in outcome.words
    assert "last collective: unknown" in write_standings(nodes)


def test_without_a_collective_the_stacks_are_what_is_left():
    first, second = recorders()
    for recorder in (first, second):
        recorder.begin(WORLD, "all_reduce", [3])
        recorder.complete(1)
    outcome, _ = hang(status(0, first), status(1, second))
    assert "no rank waits in a collective" in outcome.words


@pytest.mark.parametrize("seen_by_watchdog", [True, False])
def test_what_the_gpu_is_through_with_is_complete_whoever_has_noticed(seen_by_watchdog):
    recorder, _ = recorders()
    recorder.begin(WORLD, "all_reduce", [3])
    recorder.complete(1, seen_by_watchdog=seen_by_watchdog)
    assert "last collective, completed: nccl:all_reduce" in list_collectives(status(0, recorder))


def test_what_has_timed_out_is_not_complete_although_it_is_retired():
    recorder, _ = recorders()
    recorder.begin(WORLD, "all_reduce", [3], started=True)
    recorder.time_out()
    assert "not completed: nccl:all_reduce" in list_collectives(status(0, recorder))


def test_the_oldest_that_is_remembered_is_told_where_older_ones_are_forgotten():
    recorder = Recorder(GROUPS, max_entries=5)
    for _ in range(9):
        recorder.begin(WORLD, "all_reduce", [3])
    (found,) = status(0, recorder).collectives
    assert (found.number, found.num_begun, found.ranks) == (5, 9, [0, 1])

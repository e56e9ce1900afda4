"""What the launcher leaves of a run for those who look at it from outside."""

import json
from pathlib import Path

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.run_files import STATUS
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.host.node_agent import Spec
from hunyuan_train.launcher.job.node import Job, Node
from hunyuan_train.launcher.job.outcome import Outcome
from hunyuan_train.launcher.job.status import RUNNING, StatusFile, read_status_file
from hunyuan_train.launcher.rank.heartbeat import Progress


def make_node(address: str, *steps: int) -> Node:
    launch = LaunchConfig()
    spec = Spec(
        commands=[],
        environment={},
        files={},
        working_folder="/",
        lease_seconds=launch.host_timeout_seconds,
        stop_seconds=launch.stop_timeout_seconds,
    )
    node = Node(Job(host=Host(address, 2), command=[], spec=spec), None)
    node.progress = {rank: Progress(step, "training") for rank, step in enumerate(steps)}
    return node


def test_hosts_and_tries_are_kept_over_starts(tmp_path: Path) -> None:
    nodes = [make_node("10.0.0.1", 7, 6), make_node("10.0.0.2")]
    first = StatusFile(tmp_path, 4)
    first.tell(nodes)
    first.end(nodes, Outcome(reason="failed", exit_code=1, words="error: rank 1 died"))
    status = read_status_file(tmp_path)
    assert status is not None
    assert status.tries[-1].outcome == "failed"
    one, two = status.hosts
    assert (one.name, one.step, one.doing, one.num_ranks) == ("10.0.0.1", 6, "training", 2)
    assert (two.step, two.doing) == (None, "starting")
    assert abs(one.heard_at - status.updated) < 5
    killed = StatusFile(tmp_path, 4)  # its launcher dies before it can say how it ended
    killed.tell(nodes)
    killed._hand_over(nodes, is_last=True)
    killed._thread.join(5)
    running = read_status_file(tmp_path)
    assert running is not None
    assert running.tries[-1].outcome == RUNNING
    last = StatusFile(tmp_path, 4)
    last.end(nodes, Outcome(reason="done", exit_code=0))
    status = read_status_file(tmp_path)
    assert status is not None
    assert [one.outcome for one in status.tries] == ["failed", "killed", "done"]
    assert status.tries[0].words == "error: rank 1 died"


def test_the_end_is_written_whatever_the_thread_was_at(tmp_path: Path) -> None:
    nodes = [make_node("10.0.0.1", 7)]
    for number in range(200):
        run = tmp_path / str(number)
        status = StatusFile(run, 2)
        status.tell(nodes)
        status.end(nodes, Outcome(reason="done", exit_code=0))
        written = read_status_file(run)
        assert written is not None
        assert written.tries[-1].outcome == "done"


def test_a_disk_that_takes_nothing_and_odd_files_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("no folder")
    status = StatusFile(tmp_path, 1)
    status.end([], Outcome(reason="done", exit_code=0))
    assert read_status_file(tmp_path) is None
    other = tmp_path / "other"
    (other / "log").mkdir(parents=True)
    known = {"updated": 1, "launcher": "a"}
    odd = [known, known | {"tries": 5, "hosts": []}, known | {"tries": [{"odd": 1}], "hosts": []}]
    for text in ("", "[]", "{}", '{"updated": "x"}', *map(json.dumps, odd)):
        (other / STATUS).write_text(text)
        assert read_status_file(other) is None
    (other / STATUS).write_text(json.dumps(known | {"tries": [], "hosts": []}))
    assert read_status_file(other) is not None

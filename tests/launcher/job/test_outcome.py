"""Which of many failures was the first, whatever order they arrive in."""

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.host.node_agent import Spec
from hunyuan_train.launcher.job.node import Failure, Job, Node
from hunyuan_train.launcher.job.outcome import conclude

SPEC = Spec(
    commands=[], environment={}, files={}, working_folder="/", lease_seconds=1, stop_seconds=1
)


def node(name, exit_code=None, *, failed_at=None, failed_with=1, ahead=0.0, started=True, tail=()):
    made = Node(Job(host=Host(name, 1), command=[], spec=SPEC), None)
    made.exit_code, made.is_over = exit_code, exit_code is not None
    made.clock_ahead, made.has_started = ahead, started
    made.tail.extend(tail)
    if failed_at is not None:
        words = f"error: rank on {name}"
        made.failure = Failure(rank=0, exit_code=failed_with, words=words, time=failed_at)
    return made


def ended(*nodes):
    return conclude(nodes, launch=LaunchConfig(host_timeout_seconds=20))


def test_all_well():
    assert ended(node("a", 0), node("b", 0)).reason == "done"


def test_the_first_failure_is_the_cause_by_one_clock():
    late_by_its_own_clock = node("b", 1, failed_at=1000.0, ahead=900.0)
    outcome = ended(node("a", 1, failed_at=101.0), late_by_its_own_clock)
    assert outcome.words == "host b: error: rank on b"
    assert outcome.host == Host("b", 1)


def test_a_killed_rank_is_the_cause_whatever_others_said_before():
    outcome = ended(node("a", 1, failed_at=1.0), node("b", 137, failed_at=2.0, failed_with=137))
    assert outcome.words == "host b: error: rank on b"
    assert outcome.exit_code == 137


def test_a_host_that_is_gone_explains_the_complaints_of_others():
    outcome = ended(node("a", 1, failed_at=1.0), node("b"))
    assert outcome.reason == "lost"
    assert outcome.lost == (Host("b", 1),)
    assert outcome.words.startswith("error: host b does not answer any more")


def test_a_killed_rank_elsewhere_is_no_loss_of_a_host():
    outcome = ended(node("a", 137, failed_at=1.0, failed_with=137), node("b"))
    assert outcome.reason == "failed"
    assert outcome.lost == (Host("b", 1),)


def test_an_unreachable_host_is_said_in_the_words_of_ssh():
    refused = node("b", 255, started=False, tail=["ssh: connect to b: Connection refused"])
    outcome = ended(node("a", 143), refused)
    assert outcome.reason == "lost"
    assert "b cannot be reached: ssh: connect to b: Connection refused; nothing listens there" in (
        outcome.words
    )


def test_a_silent_end_shows_the_last_lines_and_is_not_that_of_a_host_that_was_ended():
    told = node("a", 137)
    told.was_told_to_end = True
    outcome = ended(told, node("b", 0), node("c", 97, tail=["sh: no such folder"]))
    assert outcome.host == Host("c", 1)
    assert outcome.words.endswith("sh: no such folder")


def test_a_killed_agent_is_said_and_one_that_was_ended_here_is_not_taken_for_it():
    killed, ended_here = node("a", 137), node("b", 137)
    ended_here.was_told_to_end = True
    assert "what starts and watches the ranks was killed (SIGKILL)" in ended(killed).words
    assert "exit code 137" in ended(ended_here).words


def test_one_host_alone_is_not_named():
    assert ended(node("a", 1, failed_at=1.0)).words == "error: rank on a"

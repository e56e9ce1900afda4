"""What a rank leaves in its node's folder, where the agent of the node reads it.

One small file of each kind per rank: its process id, how far it is, and, when the agent asks, where
it stands. Nothing here needs the rank's main thread, which may hang.
"""

import faulthandler
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hunyuan_train.launcher.host.supervise import die_with_parent
from hunyuan_train.launcher.rank.collectives import Collective, read_collectives

logger = logging.getLogger(__name__)

# The node's folder; unset under a torchrun of the user's, where there is nobody to tell.
FOLDER_VARIABLE = "HUNYUAN_TRAIN_NODE_FOLDER"
FAILURE_REPORT = ".failure"  # suffix of the file in which a failing rank leaves its report
STACKS_SIGNAL = signal.SIGUSR2
ASKED = "asked_where_ranks_stand"
POLL_SECONDS = 0.5
TELL_SECONDS = 1.0  # between two heartbeats of the same work
STARTING = "starting"  # until all ranks have met
TRAINING = "training"
# In these a stop finishes the step, and saves.
HEEDING = (TRAINING, "evaluating", "saving")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rank is."""

    step: int  # optimizer steps done
    doing: str  # starting, loading, evaluating before training, training, exporting, ...
    num_moves: int = 0  # grows with each part of it that is done


@dataclass(frozen=True, slots=True)
class RankStatus:
    """Where a rank stood when it was asked."""

    rank: int
    progress: Progress
    state: str  # of its process, as Linux calls it: running, sleeping, stopped, ...
    collectives: list[Collective]  # one of each group; none where it could not say
    stacks: str  # of all its threads; empty where it could not say


def is_worker() -> bool:
    """Whether this process is one of the ranks that the launcher or torchrun started."""
    return {"RANK", "LOCAL_RANK"} <= os.environ.keys()


def node_folder() -> Path | None:
    """The folder of this rank's node; None where no agent reads it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None


class Heartbeat:
    """What one rank tells its agent; nothing where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        # Reads torch's flight recorders, from another thread; set when ranks meet.
        self.read_recorders: Callable[[], list[bytes]] = list
        self.progress = Progress(0, STARTING)
        self.told_at = 0.0
        self.lock = threading.Lock()  # checkpoints are written by another thread

    def report(self, step: int, doing: str) -> None:
        """Say how many steps are done, and what comes now."""
        with self.lock:
            self._tell(step, doing)

    def moved_on(self) -> None:
        """Say that a part of the present work is done; called as often as one likes."""
        with self.lock:
            if time.monotonic() - self.told_at > TELL_SECONDS:
                self._tell(self.progress.step, self.progress.doing)

    def _tell(self, step: int, doing: str) -> None:
        self.told_at = time.monotonic()
        self.progress = Progress(step, doing, self.progress.num_moves + 1)
        if self.folder is not None:
            text = json.dumps(asdict(self.progress))
            try:
                _write_whole(self.folder / f"{os.environ['RANK']}.progress", text)
            except OSError as error:  # no reason to lose the run; the next one may get through
                logger.warning("the agent could not be told how far this rank is: %s", error)


def announce_rank() -> Heartbeat:
    """Tell the agent that this rank lives, and answer it from now on.

    Called before anything that takes long, such as importing torch, so that it can say where it
    hangs there, too.
    """
    folder = node_folder()
    heartbeat = Heartbeat(folder)
    if folder is None:
        return heartbeat
    die_with_parent(signal.SIGKILL)  # of the agent: without it nobody would stop this rank
    rank = int(os.environ["RANK"])
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
    _write_whole(folder / f"{rank}.pid", str(os.getpid()))
    heartbeat.report(0, STARTING)
    threading.Thread(
        target=_answer, args=(folder, rank, heartbeat), daemon=True, name="heartbeat"
    ).start()
    return heartbeat


def _answer(folder: Path, rank: int, heartbeat: Heartbeat) -> None:
    while not (folder / ASKED).exists():
        time.sleep(POLL_SECONDS)
    found = read_collectives(heartbeat.read_recorders(), now_ns=time.time_ns())
    _write_whole(folder / f"{rank}.collectives", json.dumps([asdict(one) for one in found]))


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def read_progress(folder: Path) -> dict[int, Progress]:
    """How far each rank of a node is that has said so."""
    return {
        int(file.stem): Progress(**json.loads(file.read_text(encoding="utf-8")))
        for file in folder.glob("*.progress")
    }


def read_process_ids(folder: Path) -> dict[int, int]:
    """The process of each rank of a node that has come far enough to say so."""
    return {int(file.stem): int(file.read_text()) for file in folder.glob("*.pid")}


def ask_where_ranks_stand(folder: Path) -> None:
    """Ask every rank of a node; `read_statuses` a few seconds later finds the answers."""
    (folder / ASKED).touch()
    for process_id in read_process_ids(folder).values():
        try:
            os.kill(process_id, STACKS_SIGNAL)
        except ProcessLookupError:
            continue  # it has ended meanwhile


def read_statuses(folder: Path) -> list[RankStatus]:
    """What the ranks of a node answered, in the order of their ranks."""
    progress = read_progress(folder)
    return [
        RankStatus(
            rank=rank,
            progress=progress.get(rank, Progress(0, STARTING)),
            state=process_state(process_id),
            collectives=as_collectives(json.loads(_read(folder / f"{rank}.collectives") or "[]")),
            stacks=_read(folder / f"{rank}.stacks"),
        )
        for rank, process_id in sorted(read_process_ids(folder).items())
    ]


def read_status(told: dict[str, Any]) -> RankStatus:
    """A status as its node's agent has sent it."""
    progress = Progress(**told["progress"])
    return RankStatus(
        **{**told, "progress": progress, "collectives": as_collectives(told["collectives"])}
    )


def as_collectives(told: list[dict[str, Any]]) -> list[Collective]:
    """Collectives as JSON has them."""
    return [Collective(**one) for one in told]


def process_state(process_id: int) -> str:
    """The state of a process in words; "ended" where there is none."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    line = next(line for line in status.splitlines() if line.startswith("State:"))
    return line.partition("(")[2].rstrip(")")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

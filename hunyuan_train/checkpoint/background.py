"""Checkpoints written while training goes on.

States change in the optimizer's step only. So a thread takes them as they are while the next
forward and backward passes run: it copies what fits into the memory it is given, writes the rest
straight to disk, and then lets the optimizer go on; the copies are written after that. Ranks agree
over a process group of their own, which training never waits for.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from hunyuan_train.checkpoint.folder import checkpoint_folder
from hunyuan_train.checkpoint.resume import choose_checkpoint
from hunyuan_train.checkpoint.retention import delete_superfluous
from hunyuan_train.checkpoint.save import Job, Part, write_checkpoint
from hunyuan_train.checkpoint.staging import Staging
from hunyuan_train.checkpoint.state import RankContent, collect_content, load_checkpoint
from hunyuan_train.checkpoint.user_commands import CheckpointCommands
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.log import SHARED
from hunyuan_train.model.router import RouterWatch
from hunyuan_train.trainer.state import TrainerState, read_state

logger = logging.getLogger(__name__)

AGREEMENT_TIMEOUT = timedelta(days=1)  # disks of ranks may differ; a dead rank is noticed at once
MEMINFO = Path("/proc/meminfo")
SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True, slots=True)
class Pending:
    """A checkpoint that is being written."""

    job: Job
    outcome: Future[tuple[str | None, float]]  # what went wrong, if anything, and the seconds
    detached: threading.Event  # set when the live states may change
    started: float


class Saver:
    """Saves a run's checkpoints in the background, one at a time; every rank has one."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        watch: RouterWatch | None,
        output_dir: Path,
        config: CheckpointConfig,
        fingerprints: dict[str, Any],
        notes: dict[str, str],
        *,
        ranks_per_host: int,
        commands: CheckpointCommands | None = None,
    ) -> None:
        self.engine = engine
        self.watch = watch
        self.output_dir = output_dir
        self.config = config
        self.fingerprints = fingerprints
        self.notes = notes
        self.ranks_per_host = ranks_per_host
        self.commands = commands  # of the ranks that run the user's
        self.staging = Staging()
        self.last_job: Job | None = None  # that was published
        self.group = dist.new_group(backend="gloo", timeout=AGREEMENT_TIMEOUT)
        self.pending: Pending | None = None
        self.stalled_seconds = 0.0  # how long training waited for saves
        self.seconds_of_last = 0.0  # that a save took, from its start to its name
        self.saved_step: int | None = None  # of the newest checkpoint that was published
        self.num_failures = 0

    def save(self, state: TrainerState) -> None:
        """Begin to save; waits for an earlier save to end. Every rank calls it at the same step."""
        started = time.monotonic()
        self.finish()
        is_model_only = self.config.save_only_model
        content = collect_content(self.engine, self.watch, only_model=is_model_only)
        folder = checkpoint_folder(self.output_dir, state.step)
        job = Job(
            folder=folder,
            state=state,
            fingerprints=self.fingerprints,
            is_model_only=is_model_only,
            notes=self.notes,
        )
        pending = Pending(job, Future(), threading.Event(), started)
        budget = snapshot_bytes(self.config.snapshot_gib, self.ranks_per_host)
        stream = _side_stream(self.engine.device)
        work = lambda: self._write(pending, content, budget, stream)  # noqa: E731
        # A daemon: a run that fails elsewhere must not wait for ranks that no longer answer.
        threading.Thread(target=_fulfil, args=(pending, work), daemon=True).start()
        self.pending = pending
        self.stalled_seconds += time.monotonic() - started

    def wait_before_update(self) -> None:
        """Called before the optimizer's step: wait until nothing reads the live states any more."""
        if self.pending:
            started = time.monotonic()
            self.pending.detached.wait()
            self.stalled_seconds += time.monotonic() - started

    def report(self) -> bool:
        """Say how a save that has ended went; False if it failed. Called between steps."""
        if self.pending is None or not self.pending.outcome.done():
            return True
        folder = self.pending.job.folder
        fault = self._take()
        if fault:
            logger.warning(
                "NOT SAVED: %s: %s. Training goes on and earlier checkpoints are as they were; "
                "make room or fix the disk before the next save",
                *(folder, fault),
                extra=SHARED,
            )
        return fault is None

    def numbers(self) -> dict[str, float | int]:
        """What is logged of the saves so far; nothing before the first has ended."""
        if self.saved_step is None and not self.num_failures:
            return {}
        newest = {} if self.saved_step is None else {"checkpoint_step": self.saved_step}
        return {
            **newest,
            "checkpoint_seconds": self.seconds_of_last,
            "checkpoint_stall_seconds": self.stalled_seconds,
            "checkpoint_failures": self.num_failures,
        }

    def finish(self) -> bool:
        """Wait until nothing is being written; False if that save failed."""
        self._wait()
        return self.report()

    def has_saved(self, step: int) -> bool:
        """Whether a step's checkpoint is on disk, once any that is being written has ended."""
        if self.pending and self.pending.job.state.step != step:
            self.finish()
        elif self.pending:
            self._wait()
            self._take()
        return self.saved_step == step

    def save_at_once(self, state: TrainerState) -> str | None:
        """Save where the run stands, and wait for it; what went wrong, the same on every rank."""
        self.save(state)
        self._wait()
        return self._take()

    def _wait(self) -> None:
        if self.pending:
            self.pending.outcome.exception()  # waits; `_take` raises it

    def _take(self) -> str | None:
        """Note the outcome of a save that has ended: what went wrong, if anything."""
        assert self.pending
        pending, self.pending = self.pending, None
        fault, self.seconds_of_last = pending.outcome.result()
        if fault:
            self.num_failures += 1
        else:
            self.saved_step = pending.job.state.step
            logger.info(
                "saved %s (%.1f s, beside training)", pending.job.folder, self.seconds_of_last
            )
        return fault

    def roll_back(self) -> TrainerState | None:
        """Restore the newest good checkpoint of this run; None where there is none."""
        self.finish()
        found = choose_checkpoint("auto", self.output_dir)
        if found is None:
            return None
        folder, manifest = found
        load_checkpoint(self.engine, folder, manifest, self.watch)
        logger.warning("went back to %s", folder, extra=SHARED)
        return read_state(manifest["state"])

    def _write(
        self,
        pending: Pending,
        content: RankContent,
        budget: int,
        stream: torch.cuda.Stream | None,
    ) -> str | None:
        def order(content: RankContent) -> Iterator[Part]:
            return detach(content, budget, pending.detached, self.staging)

        with ExitStack() as context:
            if stream:
                context.enter_context(torch.cuda.stream(stream))
            fault = write_checkpoint(pending.job, content, order, group=self.group)
        if fault is None:
            self._follow_up(pending.job)
        return fault

    def delete_what_was_in_use(self) -> None:
        """Delete what a user's command has kept from being deleted; called once none runs."""
        if self.last_job and dist.get_rank() == 0:
            delete_superfluous(self.output_dir, self.config, self.last_job.state)

    def _follow_up(self, job: Job) -> None:
        """Start the user's command, and delete what is too much and not in use by it."""
        ranks: list[list[Path]] = [[]] * dist.get_world_size()
        self.last_job = job
        if self.commands:
            self.commands.start(job.folder)
        if self.config.after_checkpoint:
            mine = self.commands.in_use() if self.commands else []
            dist.all_gather_object(ranks, mine, self.group)
        if dist.get_rank() == 0:
            spared = [folder for part in ranks for folder in part]
            delete_superfluous(self.output_dir, self.config, job.state, spared=spared)


def detach(
    content: RankContent, budget: int, detached: threading.Event, staging: Staging
) -> Iterator[Part]:
    """Give the states for writing, freeing the live ones as early as the memory allows.

    Args:
        content: with live states.
        budget: bytes that copies may take.
        detached: set once no live state is needed any more.
        staging: brings them to host memory.
    """
    copies, streamed = {}, []
    for name, values in content.states.items():
        if values.nbytes <= budget:
            budget -= values.nbytes
            copies[name] = staging.copy(values)
        else:
            streamed.append((name, values))
    for name, values in streamed:  # each part is on its way to the disk when the next is asked for
        for start, part in staging.parts(values):
            yield name, start, part
    detached.set()
    while copies:
        name = next(iter(copies))
        yield name, 0, copies.pop(name)


def snapshot_bytes(setting: float | str, ranks_per_host: int) -> int:
    """Bytes that one rank may hold copies in."""
    if setting != "auto":
        return int(float(setting) * 2**30)
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return int(free * SHARE_OF_FREE_MEMORY) // ranks_per_host


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream whose copies start after what is queued now, and beside what comes next."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _fulfil(pending: Pending, work: Callable[[], str | None]) -> None:
    """Run in the thread: whatever happens, the outcome is known and the optimizer is let go."""
    try:
        fault = work()
        pending.outcome.set_result((fault, time.monotonic() - pending.started))
    except BaseException as error:  # noqa: BLE001  it is raised where the outcome is asked for
        pending.outcome.set_exception(error)
    finally:
        pending.detached.set()

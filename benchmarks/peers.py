"""Training steps beside those of other trainers, each in an environment of its own.

    python -m benchmarks.peers [--ranks 2] [--steps 8] [--checkpointed]
        [--before FOLDER] [--report]

With one rank the rival is TRL's SFTTrainer with fused AdamW, with several Transformers's Trainer
under ZeRO-3. All train the same model of 84 M parameters on the same rows, in float32, with one
thread a process, and take their steps in turn. A step is what passes from the word to begin until
the next step could begin, logging and reading of data included. Ratios are medians over rounds of
turns, so that what else the machine does disturbs both alike. Memory is a rank's peak while it
trains, its libraries included.
"""

import argparse
import base64
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.load import build_config, tokenizer_folder
from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.launcher.host.extension import SHARED_MEMORY, extensions_folder
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.selftest.reference import plain_model
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python

REPOSITORY = Path(__file__).parents[1]
RIVAL = REPOSITORY / "benchmarks" / "peers_trainer.py"
OURS = REPOSITORY / "benchmarks" / "peers_ours.py"
TIMEOUT_SECONDS = 900.0
WARM_UP = 2  # rounds, in which memory is taken and ZeRO-3 learns in which order parameters come
RATE, BETA2, DECAY = 1e-4, 0.95, 0.01

# Narrow and deep enough that neither the output layer nor a single product takes most of the time.
SHAPE = replace(
    TINY,
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_experts=64,
    moe_topk=8,
    max_position_embeddings=32768,
)
ZERO3 = {  # of a rival: what Transformers' documentation shows for stage 3, without offloading
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
    },
}


def environment_of(python: str) -> dict[str, str]:
    """Of a process of ours or of a rival's, on the CPU and with one thread.

    Args:
        python: the interpreter of its environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    place = Path(python).parent
    own = place.parent / "torch_extensions"  # those that share a folder compile over each other's
    if python == sys.executable:
        own = extensions_folder({})
    return kept | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(own),
    }


def prepare_extension(python: str) -> None:
    """Compile what talks between processes, and clear away what a killed benchmark has left.

    A lock that nobody holds is waited for without an end.
    """
    environment = environment_of(python)
    if python == sys.executable:
        module = "hunyuan_train.launcher.host.extension"
        command = [python, "-m", module, SHARED_MEMORY.name]
        subprocess.run(command, env=environment, cwd=REPOSITORY, check=True)
        return
    for lock in Path(environment["TORCH_EXTENSIONS_DIR"]).glob("*/lock"):
        lock.unlink()


@dataclass
class Contender:
    """Processes that train one model, and what each of their turns took."""

    name: str
    command: list[str]
    code: Path  # of the package, where it is ours
    settings: dict[str, Any]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each turn
    cpu_seconds: list[float] = field(default_factory=list)  # of each turn, of all ranks
    losses: list[float] = field(default_factory=list)
    cpu_so_far: float = 0.0
    cpu_at_start: float = 0.0  # of a rank, until its first step
    peak: int = 0  # bytes, of the rank that held most

    def start(self, num_ranks: int) -> None:
        """Start its ranks."""
        self.folder.mkdir()
        settings = self.folder / "settings.json"
        settings.write_text(json.dumps(self.settings))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for rank in range(num_ranks):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": str(self.code),
            }
            with (self.folder / f"rank{rank}.txt").open("wb") as log:
                process = subprocess.Popen(
                    [*self.command, str(settings)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment_of(self.command[0]) | variables,
                    cwd=self.code,
                )
            self.processes.append(process)

    def tail(self) -> str:
        """The end of what its first rank said."""
        return "\n".join((self.folder / "rank0.txt").read_text().splitlines()[-30:])

    def hear(self) -> None:
        """Wait until all ranks could begin a step, and note what they say of the one before."""
        told = [json.loads(self.read_line(connection)) for connection in self.connections]
        cpu = sum(one["cpu_seconds"] for one in told)
        self.cpu_seconds.append(cpu - self.cpu_so_far)
        self.cpu_so_far = cpu
        self.peak = max(one["peak"] for one in told)
        if told[0]["loss"] is not None:
            self.losses.append(told[0]["loss"])

    def read_line(self, connection: socket.socket) -> str:
        """What a rank says when it waits for a turn; one rank says no more before it has one."""
        line = b""
        while not line.endswith(b"\n"):
            part = connection.recv(4096)
            if not part:
                raise RuntimeError(f"{self.name} has ended:\n{self.tail()}")
            line += part
        return line.decode()

    def take_turn(self) -> None:
        """Let all ranks do one step."""
        began = time.perf_counter()
        for connection in self.connections:
            connection.sendall(b"go\n")
        self.hear()
        self.seconds.append(time.perf_counter() - began)


@contextmanager
def gather(contenders: Sequence[Contender], folder: Path, num_ranks: int) -> Iterator[None]:
    """Start all contenders and wait until each could begin its first step; end them at the end."""
    address = str(folder / "turns")
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(address)
        server.listen()
        server.settimeout(TIMEOUT_SECONDS)
        for one in contenders:  # one after the other: how much CPU a start takes is told, too
            one.settings["address"] = address
            prepare_extension(one.command[0])
            one.start(num_ranks)
            stack.callback(end, one)
            for _ in range(num_ranks):
                connection, _ = server.accept()
                connection.settimeout(TIMEOUT_SECONDS)
                one.connections.append(connection)
            one.hear()
            one.cpu_at_start = one.cpu_so_far / num_ranks
            one.cpu_seconds.clear()
        yield


def end(contender: Contender) -> None:
    """End its processes."""
    for connection in contender.connections:
        connection.close()
    for process in contender.processes:
        process.kill()
        process.wait()


def write_model(folder: Path, shape: ModelShape) -> None:
    """A model as a folder that everybody loads."""
    source = SeededWeights(0, shape.initializer_range)
    plain_model(shape, source, attention="sdpa", experts="grouped_mm").save_pretrained(folder)


def write_words(path: Path) -> None:
    """The bundled vocabulary, with words that no text has until it is as large as the model's."""
    words = (TINY_TOKENIZER / path.name).read_text().splitlines()
    num_missing = SHAPE.vocab_size - load_tokenizer(TINY_TOKENIZER, None).vocab_size
    for number in range(num_missing):
        word = base64.b64encode(b"\xff" + number.to_bytes(2, "big")).decode()
        words.append(f"{word} {len(words)}")
    path.write_text("\n".join(words) + "\n")


def write_text(path: Path, num_tokens: int) -> None:
    """One document of random words, which is cut into rows; only its last one is short."""
    words = np.random.default_rng(0).integers(100, 1000, num_tokens)
    path.write_text(json.dumps({"text": " ".join(map(str, words))}) + "\n")


def list_flags(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of our run."""
    return {
        "model_name_or_path": str(folder / "model"),
        "train_data_file": str(folder / "text.jsonl"),
        "cache_dir": str(folder / "cache"),
        "max_seq_length": arguments.tokens,
        "max_steps": arguments.steps + 2,
        "num_processes": arguments.ranks,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "adam_beta2": BETA2,
        "weight_decay": DECAY,
        "optimizer": "adamw",
        "bf16": False,
        "gradient_checkpointing": arguments.checkpointed,
        "deepspeed": "ds_configs/zero3_ep.json",
        "expert_parallel_size": arguments.ranks,
        "export": False,
        "save_steps": 10**6,
        "sample_answers": False,
        "logging_steps": 1,
    }


def read_rows(flags: dict[str, Any], num_ranks: int, num_steps: int) -> list[dict[str, list[int]]]:
    """The rows of our steps, rank by rank, as a rival is given them."""
    config = build_config(flags)
    dataset = prepare_dataset(config.data, load_tokenizer(tokenizer_folder(config.model), None))
    samplers = [
        BatchSampler(
            dataset,
            DataShard(rows=1, num_ranks=num_ranks, rank=rank),
            accumulation_steps=1,
            seed=config.train.seed,
            packing=config.data.packing,
        )
        for rank in range(num_ranks)
    ]
    rows, position = [], Position()
    for _ in range(num_steps):
        taken = [sampler.step_batches(position) for sampler in samplers]
        position = taken[0][1]
        for [batch], _ in taken:
            assert len(batch.cu_seqlens) == 2, "a row of several documents"
            ids = batch.input_ids.tolist()
            rows.append({"input_ids": ids, "labels": ids})
    return rows


def make_contenders(folder: Path, arguments: argparse.Namespace) -> list[Contender]:
    """The rival and ours."""
    flags = list_flags(folder, arguments)
    rows = read_rows(flags, arguments.ranks, arguments.steps + 2)
    is_single = arguments.ranks == 1
    kind, name = ("trl", "TRL SFTTrainer") if is_single else ("trainer", "HF Trainer, ZeRO-3")
    rival = {
        "name": f"{name}, adamw_torch_fused",
        "kind": kind,
        "model": str(folder / "model"),
        "output_dir": str(folder / "rival" / "run"),
        "rows": rows,
        "steps": arguments.steps + 2,
        "learning_rate": RATE,
        "adam_beta2": BETA2,
        "weight_decay": DECAY,
        "optimizer": "adamw_torch_fused",
        "is_checkpointed": arguments.checkpointed,
        "deepspeed": ZERO3,
    }
    python = client_python("trl" if is_single else "hf_zero3")
    contenders = [
        Contender(rival["name"], [python, str(RIVAL)], REPOSITORY, rival, folder / "rival")
    ]
    split = "ZeRO-3" if is_single else f"ZeRO-3, experts over {arguments.ranks}"
    checkouts = {"ours": REPOSITORY} | ({"before": arguments.before} if arguments.before else {})
    for place, code in checkouts.items():
        name = f"ours, {split}" + (" (before)" if place == "before" else "")
        flags |= {"output_dir": str(folder / place / "run")}
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        settings = {"name": name, "flags": words}
        command = [sys.executable, str(OURS)]
        contenders.append(Contender(name, command, code, settings, folder / place))
    return contenders


def measure(arguments: argparse.Namespace, folder: Path) -> list[Contender]:
    """Let all contenders take their steps."""
    write_model(folder / "model", SHAPE)
    write_words(folder / "model" / "hy.tiktoken")
    write_text(folder / "text.jsonl", 2 * arguments.tokens * arguments.ranks * arguments.steps)
    contenders = make_contenders(folder, arguments)
    with gather(contenders, folder, arguments.ranks):
        for number in range(arguments.steps):
            first = number % len(contenders)
            for one in contenders[first:] + contenders[:first]:
                one.take_turn()
            seconds = ", ".join(f"{one.name} {one.seconds[-1]:.2f} s" for one in contenders)
            print(f"step {number + 1}: {seconds}", file=sys.stderr)
    return contenders


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of turns."""
    pairs = zip(ours[WARM_UP:], theirs[WARM_UP:], strict=True)
    return median(one / other for one, other in pairs)


def table(contenders: Sequence[Contender]) -> list[str]:
    """A row for each contender; the first is the measure."""
    first = contenders[0]
    lines = [
        "| contender | step | ratio | CPU, all ranks | ratio | peak of a rank | ratio "
        "| CPU of a rank to step 1 | loss of the last step |",
        "|---" + "|---:" * 8 + "|",
    ]
    for one in contenders:
        lines.append(
            f"| {one.name} | {median(one.seconds[WARM_UP:]):.2f} s "
            f"| {ratio(one.seconds, first.seconds):.2f} "
            f"| {median(one.cpu_seconds[WARM_UP:]):.2f} s "
            f"| {ratio(one.cpu_seconds, first.cpu_seconds):.2f} "
            f"| {one.peak / 1e9:.2f} GB | {one.peak / first.peak:.2f} "
            f"| {one.cpu_at_start:.1f} s | {one.losses[-1]:.5f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help=f"{WARM_UP} of them warm up")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--checkpointed", action="store_true", help="compute layers again")
    parser.add_argument("--before", type=Path, help="folder of an earlier commit, to compare")
    add_report_flag(parser)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        contenders = measure(arguments, Path(folder))
    command = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
    cores, now = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    lines = [
        f"## Beside other trainers, {arguments.ranks} rank(s): {date.today()}",
        "",
        f"`{command}` on {platform.machine()}, {cores} cores, load {load:.1f} before and {now:.1f} "
        f"behind, torch {version('torch')}, float32, one thread a process. "
        f"{count_parameters(SHAPE).total / 1e6:.1f} M parameters, a row of {arguments.tokens} "
        f"tokens a rank, layers computed {'again' if arguments.checkpointed else 'once'}, "
        f"{arguments.steps - WARM_UP} rounds.",
        "",
        *table(contenders),
        "",
    ]
    show("\n".join(lines), is_kept=arguments.report)


if __name__ == "__main__":
    main()

"""How fast data becomes batches, how full rows are, and how much memory a large file takes.

    python -m benchmarks.data --tokenizer FOLDER [--against CHECKOUT] [--report]

Throughput counts tokens by seconds of processor time of one process, so that other load on the
machine disturbs it little; each number is the best of a few rounds over the same mix of chats.
`--against` measures nothing but how fast the cache is made, in turns with another version of the
program.
"""

import argparse
import functools
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from benchmarks.results import add_report_flag, show
from hunyuan_train.data.batches.rows import measure_fill, pack_rows
from hunyuan_train.data.compiled.compile import CompileSettings, compile_chunk
from hunyuan_train.data.inspection.lint import LintOptions, lint_sources
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import read_chunks
from hunyuan_train.data.reading.sources import Source
from hunyuan_train.data.reading.workers import map_in_order
from hunyuan_train.export.served_tokenizer import build_fast_tokenizer
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
ROUNDS = 3
LONG_ROW = 32768  # for throughput: nothing is left out, every token counts
MAX_SEQ_LENGTH = 4096
NUM_RIVAL_RECORDS = 1500
NUM_SHORT_PER_MEGABYTE = 4000  # of the mix: about as many bytes

# Common characters, strung together where the mix needs Chinese.
CHINESE = (
    "的一是在不了有和人这中大为上个国我到说时候出来分要可以下着生活工作学习问题时间方法发现世界"
)

Rows = list[tuple[str, str, str]]


class Mix:
    """Chats of the kind that fine-tuning sees: a quarter short extractions, the rest 1 to 8 turns.

    English and code are the paragraphs of the modules that come with Python.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.code: list[str] = []
        self.english: list[str] = []
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            for number, part in enumerate(path.read_text("utf-8", "ignore").split('"""')):
                kind = self.english if number % 2 else self.code
                kind += [text for text in part.split("\n\n") if 40 < len(text) < 3000]

    def records(self, num_bytes: int) -> Iterator[str]:
        """JSON lines, that many bytes of them."""
        while num_bytes > 0:
            line = json.dumps(self._record(), ensure_ascii=False) + "\n"
            num_bytes -= len(line.encode())
            yield line

    def _record(self) -> dict:
        if self.rng.random() < 0.25:
            query = f"/no_think {self._chinese(45)}"
            return _chat([(query, f"<think>\n\n</think>\n<answer>\n{self._chinese(2)}\n</answer>")])
        mode = self.rng.choice(["fast", "slow", "plain"])
        num_turns = self.rng.choice([1, 1, 1, 1, 2, 2, 3, 4, 5, 8])
        turns = [self._turn(mode) for _ in range(num_turns)]
        return {"mode": mode, **_chat(turns, has_system=num_turns % 2 == 1)}

    def _turn(self, mode: str) -> tuple[str, str]:
        query, answer = self.rng.choice(self.english)[:300], self._text()
        if mode == "fast":
            return f"/no_think {query}", f"<think>\n\n</think>\n<answer>\n{answer}\n</answer>"
        if mode == "slow":
            return query, f"<think>\n{self._text()}\n</think>\n<answer>\n{answer}\n</answer>"
        return query, answer

    def _text(self) -> str:
        kind, length = self.rng.random(), self.rng.choice([1, 1, 2, 3, 4, 8, 12])
        if kind < 0.4:
            return "\n\n".join(self.rng.choice(self.english).strip() for _ in range(length))
        if kind < 0.7:
            return self._chinese(180 * length)
        return "```python\n" + "\n\n".join(self.rng.choices(self.code, k=length)) + "\n```"

    def _chinese(self, num_characters: int) -> str:
        return "".join(self.rng.choices(CHINESE, k=num_characters)) + "。"


def _chat(turns: list[tuple[str, str]], *, has_system: bool = True) -> dict:
    messages = [{"role": "system", "content": "You are a helpful assistant."}] if has_system else []
    for query, answer in turns:
        messages += [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def best_seconds(work: Callable[[], object]) -> float:
    """Least processor time of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def compile_file(path: Path, tokenizer: Tokenizer, *, history: str, max_length: int) -> np.ndarray:
    """Read, check, render, tokenize and mask a file; the lengths of its samples."""
    settings = CompileSettings(max_seq_length=max_length, history=history, overlong="drop")
    work = functools.partial(compile_chunk, settings=settings, tokenizer=tokenizer)
    chunks = map_in_order(work, read_chunks(path), num_workers=1)
    return np.concatenate([chunk.encoded.sample_lengths() for chunk in chunks])


def pack(lengths: np.ndarray, max_length: int) -> float:
    """Share of the packed rows that is tokens."""
    order = np.random.default_rng(0).permutation(len(lengths))
    rows = pack_rows(lengths, order, max_length=max_length)
    return measure_fill(lengths, rows, max_length)


def measure_throughput(path: Path, tokenizer: Tokenizer) -> Rows:
    """Tokens by second: raw tiktoken, the whole path, and what people use today."""
    records = [json.loads(record) for chunk in read_chunks(path) for record in chunk.records]
    texts = [message["content"] for record in records for message in record["messages"]]

    def encode_raw() -> int:
        encode = tokenizer.encoding.encode
        return sum(
            len(encode(text, allowed_special=set(), disallowed_special=())) for text in texts
        )

    def compile_and_pack(history: str) -> int:
        lengths = compile_file(path, tokenizer, history=history, max_length=LONG_ROW)
        pack(lengths, LONG_ROW)
        return int(lengths.sum())

    raw = encode_raw() / best_seconds(encode_raw)
    rows = [("raw tiktoken, each message", f"{raw:,.0f} tokens/s", "1.00")]
    for history in ("keep", "strip"):
        work = functools.partial(compile_and_pack, history)
        speed = work() / best_seconds(work)
        name = f"read, check, render, tokenize, mask, pack; history {history}"
        rows.append((name, f"{speed:,.0f} tokens/s", f"{speed / raw:.2f}"))
    speed = measure_rival(records[:NUM_RIVAL_RECORDS], tokenizer)
    name = "`datasets` map + `apply_chat_template`"
    return [*rows, (name, f"{speed:,.0f} tokens/s", f"{speed / raw:.2f}")]


def measure_rival(records: list[dict], tokenizer: Tokenizer) -> float:
    """Tokens by second of `datasets` with Transformers' chat template and fast tokenizer."""
    datasets.disable_progress_bars()
    datasets.disable_caching()
    fast = PreTrainedTokenizerFast(tokenizer_object=build_fast_tokenizer(tokenizer))
    fast.chat_template = tokenizer.grammar.chat_template
    table = datasets.Dataset.from_list(records)

    def encode() -> datasets.Dataset:
        return table.map(
            lambda row: {"ids": fast.apply_chat_template(row["messages"])["input_ids"]}
        )

    num_tokens = sum(len(row["ids"]) for row in encode())
    return num_tokens / best_seconds(encode)


def measure_linter(path: Path) -> Rows:
    """Megabytes by second of checking a file without a tokenizer, and of decoding alone."""
    raw = [record for chunk in read_chunks(path) for record in chunk.records]
    num_megabytes = path.stat().st_size / 1e6
    decoding = num_megabytes / best_seconds(lambda: [decode_record(one, []) for one in raw])
    settings = CompileSettings(max_seq_length=MAX_SEQ_LENGTH)
    source = [Source(path)]
    checking = num_megabytes / best_seconds(
        lambda: lint_sources(source, settings, LintOptions(), num_workers=1)
    )
    return [
        ("decoding JSON, repeated keys found", f"{decoding:,.0f} MB/s", ""),
        ("`data check`, everything", f"{checking:,.0f} MB/s", ""),
    ]


def measure_packing(path: Path, tokenizer: Tokenizer) -> Rows:
    """How full rows are, and how long it takes to lay them."""
    lengths = compile_file(path, tokenizer, history="strip", max_length=MAX_SEQ_LENGTH)
    seconds = best_seconds(lambda: pack(lengths, MAX_SEQ_LENGTH))
    median, high = np.percentile(lengths, (50, 95)).astype(int)
    name = (
        f"{len(lengths):,} samples (median {median:,}, p95 {high:,}) in rows of {MAX_SEQ_LENGTH:,}"
    )
    return [(name, f"{pack(lengths, MAX_SEQ_LENGTH):.2%} full", f"{seconds:.2f} s")]


# In a process of its own: workers import its script again, which must cost them what it costs
# the workers of a training run, and its memory must not hold what this benchmark holds.
PROBE = """
import re, resource, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.compiled.compile import CompileSettings
from hunyuan_train.data.inspection.lint import LintOptions, lint_sources
from hunyuan_train.data.reading.sources import Source
from hunyuan_train.families.grammar.find import load_tokenizer

if __name__ == "__main__":
    work, path, folder, tokenizer, num_workers = sys.argv[2:]
    settings = {"max_seq_length": 4096, "overlong": "drop"}
    cpu = time.process_time
    started, before = time.perf_counter(), cpu()
    if work == "check":
        lint_sources([Source(Path(path))], CompileSettings(**settings), LintOptions())
    else:
        config = DataConfig(
            train_data_file=path,
            cache_dir=folder,
            preprocessing_num_workers=int(num_workers),
            data_policy="foreign_markers=note",  # which Python's own modules hold
            **settings,
        )
        prepare_dataset(config, load_tokenizer(Path(tokenizer)))
    seconds = time.perf_counter() - started
    # Not ru_maxrss for ourselves: it starts at what the benchmark held when it forked.
    own = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(seconds, own, workers.ru_maxrss, cpu() - before + workers.ru_utime + workers.ru_stime)
"""


def run_probe(
    work: str,
    path: Path,
    folder: Path,
    tokenizer: Tokenizer,
    num_workers: int = 0,
    version: Path = REPOSITORY,
) -> list[float]:
    """Seconds, peak KiB of the process and of its largest worker, CPU-seconds of all of them.

    Args:
        work: check or prepare.
        path: of the data.
        folder: for the cache.
        tokenizer: whose folder both versions read.
        num_workers: 0 for the default number.
        version: a checkout of the program.
    """
    arguments = (version, work, path, folder, tokenizer.folder, num_workers)
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in output.split()]


def compare_versions(path: Path, other: Path, folder: Path, tokenizer: Tokenizer) -> Rows:
    """Records by second of making the cache with 2 processes, in turns; start of workers included.

    The last column is processor time by record, of all processes.
    """
    num_records = path.read_bytes().count(b"\n")
    versions = {"before": other.resolve(), "now": REPOSITORY}
    found: dict[str, list[list[float]]] = {name: [] for name in versions}
    for _ in range(ROUNDS):
        for name, version in versions.items():
            cache = folder / "cache"
            found[name].append(run_probe("prepare", path, cache, tokenizer, 2, version))
            shutil.rmtree(cache)
    rows = []
    for name, rounds in found.items():
        seconds, cpu_seconds = (min(one[index] for one in rounds) for index in (0, 3))
        rows.append(
            (
                f"{name}: {path.stem}, {num_records:,} records of {path.stat().st_size:,} bytes",
                f"{num_records / seconds:,.0f} records/s",
                f"{cpu_seconds / num_records * 1e6:,.1f} µs",
            )
        )
    return rows


def write_short(path: Path, num_records: int) -> None:
    """Chats of one short question and answer, where tokens are few and records many."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            query = f"/no_think How many people live in city {number}, and what is it known for?"
            answer = (
                f"About {7 * number:,} people live there. It is known for its {number} bridges."
            )
            tagged = f"<think>\n\n</think>\n<answer>\n{answer}\n</answer>"
            file.write(json.dumps(_chat([(query, tagged)], has_system=False)) + "\n")


def measure_start(path: Path, folder: Path, tokenizer: Tokenizer) -> Rows:
    """Seconds of a first start with one process and with two, and of a second from the cache."""

    def start(num_workers: int) -> float:
        cache = folder / f"cache-{num_workers}"
        return run_probe("prepare", path, cache, tokenizer, num_workers)[0]

    one, two, again = start(1), start(2), start(2)
    return [
        ("first start, 1 process", f"{one:.2f} s", "1.00"),
        ("first start, 2 processes", f"{two:.2f} s", f"{one / two:.2f} times as fast"),
        ("second start, from the cache", f"{again:.2f} s", ""),
    ]


def write_large(mix: Path, gigabytes: float, path: Path) -> None:
    """Copies of the mix in which no dialogue occurs twice."""
    content = mix.read_bytes()
    with path.open("wb") as file:
        for number in range(round(gigabytes * 1e9 / len(content))):
            file.write(
                re.sub(rb'"user", "content": "(/no_think )?', rb"\g<0>%d " % number, content)
            )


def measure_memory(mix: Path, gigabytes: float, folder: Path, tokenizer: Tokenizer) -> Rows:
    """Peak memory of the main process and of the largest worker over a large file."""
    path = folder / "large.jsonl"
    write_large(mix, gigabytes, path)
    rows = []
    for work in ("check", "prepare"):
        peaks = run_probe(work, path, folder / work, tokenizer)[1:3]
        main, worker = (kibibytes / 1e3 for kibibytes in peaks)
        rows.append((f"{work} {gigabytes:.1f} GB", f"{main:,.0f} MB", f"{worker:,.0f} MB a worker"))
        shutil.rmtree(folder / work, ignore_errors=True)
    return rows


def measure_all(
    path: Path, folder: Path, tokenizer: Tokenizer, memory_gigabytes: float
) -> dict[str, Rows]:
    """Everything about this version of the program."""
    sections = {
        "Throughput of one core": measure_throughput(path, tokenizer),
        "Linter, one core": measure_linter(path),
        "Packing": measure_packing(path, tokenizer),
        "Start": measure_start(path, folder, tokenizer),
    }
    if memory_gigabytes:
        sections["Peak memory"] = [
            row
            for gigabytes in (memory_gigabytes / 4, memory_gigabytes)
            for row in measure_memory(path, gigabytes, folder, tokenizer)
        ]
    return sections


def report(sections: dict[str, Rows]) -> str:
    """The numbers as Markdown."""
    num_cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {num_cores} cores, Python {platform.python_version()}"
    machine += f", load {os.getloadavg()[0]:.1f} at the end"
    lines = [f"## Data: {date.today()}", "", f"`python {' '.join(sys.argv)}` on {machine}", ""]
    for title, rows in sections.items():
        lines += [f"| {title} | | |", "|---|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "data" / "tokenizer_tiny")
    parser.add_argument("--megabytes", type=float, default=100, help="size of the mix")
    parser.add_argument("--memory_gigabytes", type=float, default=2, help="0 leaves it out")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version, beside")
    add_report_flag(parser)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "mix.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(Mix(seed=0).records(int(arguments.megabytes * 1e6)))
        if arguments.against:
            write_short(folder / "short.jsonl", int(NUM_SHORT_PER_MEGABYTE * arguments.megabytes))
            sections = {
                "Cache made by 2 processes, in turns": [
                    row
                    for name in ("mix.jsonl", "short.jsonl")
                    for row in compare_versions(folder / name, arguments.against, folder, tokenizer)
                ]
            }
        else:
            sections = measure_all(path, folder, tokenizer, arguments.memory_gigabytes)
    text = report(sections)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()

"""What a step, a start and a rank's memory cost as a data set grows.

    python -m benchmarks.loader [--samples 100000 1000000 10000000] [--tokens 24 40] [--report]

Data sets are written as tokenizing writes them, with samples of 24 to 40 tokens, and opened by a
process of their own, whose memory is then that of nothing else. A sample takes 69 bytes and 5 for
each token, and 4 more where rows are packed: a hundred million of 4 to 8 tokens are 10 GB.
`--against FOLDER` measures another version of the program in turns, from a checkout of it.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.results import add_report_flag, show

REPOSITORY = Path(__file__).resolve().parents[1]
# Runs in either version of the program, so it may use only what both have.
PROBE = """
import json, re, statistics, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position
from hunyuan_train.data.compiled import build, cache
from hunyuan_train.data.compiled.compile import CompiledChunk, CompileSettings
from hunyuan_train.data.compiled.verification import find_damage
from hunyuan_train.data.dataset import SAMPLE, DataSummary, write_summary
from hunyuan_train.data.findings import FindingLog
from hunyuan_train.data.reading.sources import Source
from hunyuan_train.data.rendering.encode import EncodedChunk
from hunyuan_train.families.grammar.find import load_tokenizer

CHUNK = 1 << 16
IDENTITY = {"key": "generated", "sources": [["generated", 0]]}

def write(folder, num_samples, least, most):
    folder.mkdir()
    generator = np.random.default_rng(0)
    with build.DatasetWriter(folder) as writer:
        for first in range(0, num_samples, CHUNK):
            count = min(CHUNK, num_samples - first)
            lengths = generator.integers(least, most + 1, size=count)
            samples = np.zeros(count, SAMPLE)
            samples["record"] = np.arange(count)
            samples["target_start"] = np.cumsum(lengths) - lengths
            samples["target_length"] = samples["num_labels"] = lengths
            total = int(lengths.sum())
            tokens = generator.integers(100, size=total, dtype=np.uint32)
            encoded = EncodedChunk(tokens, np.full(total, 2, np.uint8), None, samples, total)
            lines = np.arange(first, first + count) + 1
            hashes = lines.astype(np.uint64)
            writer.add(0, CompiledChunk("x", [], {}, lines, hashes, hashes[:0], encoded, 0))
        fingerprint, sums = writer.finish()
    empty = dict(num_dropped={}, num_fixed={}, num_findings={}, noted_fields={}, growth=1.0)
    summary = DataSummary(
        fingerprint=fingerprint, num_records=num_samples, num_samples=num_samples, num_fast=0,
        num_slow=0, num_plain=num_samples, num_turns=num_samples, num_tokens=0,
        num_label_tokens=0, num_label_tokens_by_span={}, **empty)
    write_summary(folder, summary, sums, IDENTITY)

def memory():
    status = Path("/proc/self/status").read_text()
    return [int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1e3 for name in ("RssAnon", "VmHWM")]

def start(folder, tokenizer, packing):
    settings = CompileSettings(max_seq_length=4096)
    source, noted = Source(Path("x")), FindingLog()
    dataset = cache.open_dataset(folder, [source], ["h"], tokenizer, settings, noted)
    shard = DataShard(rows=8, num_ranks=8, rank=3)
    return BatchSampler(dataset, shard, accumulation_steps=1, seed=1, packing=packing)

work, folder, packing = sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "packed"
tokenizer = load_tokenizer(Path(sys.argv[1]) / "data" / "tokenizer_tiny")
if work == "write":
    write(folder, *map(int, sys.argv[5:]))
elif work == "verify":
    began = time.perf_counter()
    assert find_damage(folder, IDENTITY, vocab_size=tokenizer.vocab_size) == ""
    print(json.dumps([time.perf_counter() - began, memory()[1]]))
else:
    began = time.perf_counter()
    sampler = start(folder, tokenizer, packing)
    position, seconds, content = Position(), [], []
    sampler.step_batches(position)
    started = time.perf_counter() - began
    for _ in range(50):
        began = time.perf_counter()
        sampler.step_content(position)
        content.append(time.perf_counter() - began)
        _, position = sampler.step_batches(position)
        seconds.append(time.perf_counter() - began)
    print(json.dumps([started, statistics.median(seconds), statistics.median(content), *memory()]))
"""


def probe(version: Path, *arguments: object) -> list[float]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", PROBE, *map(str, (version, *arguments))]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(number) for number in output.strip().strip("[]").split(",") if number]


def measure(
    name: str, version: Path, folder: Path, num_samples: int, tokens: tuple[int, int]
) -> list[str]:
    """A data set of some size in one version of the program, as lines of a table."""
    data = folder / f"{version.name}-{num_samples}"
    probe(version, "write", data, "packed", num_samples, *tokens)
    num_bytes = sum(file.stat().st_size for file in data.iterdir())
    lines = []
    verified, highest = probe(version, "verify", data, "packed")
    for rows in ("packed", "single"):
        first = probe(version, "start", data, rows)
        second = probe(version, "start", data, rows)
        started, step, content, anonymous, resident = second
        numbers = [
            f"{num_bytes / 1e9:,.2f} GB", f"{verified:.2f} s", f"{first[0]:.2f} s",
            f"{started:.2f} s", f"{step * 1e3:.2f} ms", f"{content * 1e3:.2f} ms",
            f"{anonymous:,.0f} MB", f"{resident:,.0f} MB", f"{highest:,.0f} MB",
        ]  # fmt: skip
        lines.append(f"| {num_samples:,} | {name} | {rows} | {' | '.join(numbers)} |")
    shutil.rmtree(data)
    for left in folder.iterdir():
        left.unlink()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--tokens", type=int, nargs=2, default=(24, 40), help="least and most")
    parser.add_argument("--folder", type=Path, help="where to work: 3 GB for ten million samples")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version, beside")
    add_report_flag(parser)
    arguments = parser.parse_args()
    versions = {"before": arguments.against.resolve()} if arguments.against else {}
    versions["now"] = REPOSITORY
    num_cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    lines = [
        f"## Loader: {date.today()}",
        "",
        f"`python {' '.join(sys.argv)}` on {platform.machine()}, {num_cores} cores, a load of "
        f"{load:.1f} at its start. A step reads 8 rows of each of 8 ranks; one rank is measured.",
        "",
        "| samples | version | rows | on disk | verifying, once a host | first start | later start "
        "| a step | of it, what it holds | a rank's own memory | resident | resident, verifying |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for num_samples in arguments.samples:
            for version, path in versions.items():
                lines += measure(version, path, Path(name), num_samples, tuple(arguments.tokens))
    show("\n".join([*lines, ""]), is_kept=arguments.report)


if __name__ == "__main__":
    main()

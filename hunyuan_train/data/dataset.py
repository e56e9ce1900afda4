"""The form of a tokenized sample, and a compiled data set on the disk, opened without reading it.

Files of a folder: `tokens.bin` and `spans.bin` (one entry a token), `weights.bin` (only where some
token with loss weighs other than 1), `samples.bin` (where each sample's tokens lie), `lengths.bin`
(of samples once more: every step looks up those of all ranks, nine to a cache line instead of
two), `records.bin` (file and line of each record), `sides.bin` (only of preferences: one entry a
sample), `summary.json`.
"""

import hashlib
import json
import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Where a sample's tokens lie: a piece of shared history, then its own. Offsets are into the chunk
# at first, and into the whole data set once it is written.
SAMPLE = np.dtype(
    [
        ("record", "<i8"),
        ("history_start", "<i8"),
        ("history_length", "<i4"),
        ("target_start", "<i8"),
        ("target_length", "<i4"),
        ("num_labels", "<i4"),
        ("mode", "u1"),
    ]
)
RECORD = np.dtype([("source", "<i4"), ("line", "<i8"), ("hash", "<u8"), ("question_hash", "<u8")])
DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u4"),
    "spans": np.dtype("u1"),
    "weights": np.dtype("<f4"),
    "samples": SAMPLE,
    "lengths": np.dtype("<u4"),
    "records": RECORD,
    "sides": np.dtype("u1"),
}
SUMS = "xxh3_128"  # of files: against damage as good as SHA-256, and ten times as fast
# What people think of an answer, by number; 0: nobody has judged it.
CHOSEN, REJECTED = 1, 2


class SampleTokens(NamedTuple):
    """One sample of T tokens."""

    tokens: npt.NDArray[np.uint32]  # [T]
    spans: npt.NDArray[np.uint8]  # [T], 0 where the token carries no loss
    weights: npt.NDArray[np.float32]  # [T]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What a data set holds, and what was left out of it."""

    fingerprint: str  # of the compiled samples and of nothing else
    num_records: int
    num_samples: int
    num_fast: int  # samples by mode
    num_slow: int
    num_plain: int
    num_text: int = 0  # plain text: documents, and pieces of long ones
    num_turns: int  # answers that carry loss
    num_tokens: int
    num_label_tokens: int
    num_label_tokens_by_span: dict[str, int]  # think, answer, marker, text
    num_dropped: dict[str, int]  # records and samples left out, by the kind of finding
    num_fixed: dict[str, int]  # repairs, by the kind of finding
    num_findings: dict[str, int]  # everything found, by kind
    noted_fields: dict[str, dict[str, int]]  # how often each field was only noted, by kind
    growth: float  # tokens of all samples by those of one sample per dialogue


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples by number; everything but their table stays on the disk."""

    paths: Sequence[str]  # of the sources
    source_weights: Sequence[float]  # how often an epoch shows the samples of each
    source_hashes: Sequence[str]  # of the content of each
    max_seq_length: int
    pad_id: int
    tokenizer_hash: str
    summary: DataSummary
    samples: npt.NDArray[np.void]  # [S] of SAMPLE
    records: npt.NDArray[np.void]  # [R] of RECORD
    tokens: npt.NDArray[np.uint32]
    spans: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32] | None
    sides: npt.NDArray[np.uint8] | None = None  # [S], CHOSEN or REJECTED; None: no preferences
    is_paired: bool = False  # samples are pairs: one chosen, then the one rejected for it
    # Of preferences, once a reference has judged them: log-probability of each answer, [S], and of
    # the answer to another prompt in its place.
    reference_logps: npt.NDArray[np.float64] | None = None
    mismatched_logps: npt.NDArray[np.float64] | None = None
    lengths: npt.NDArray[np.uint32] | None = None  # [S], tokens of each sample, if at hand
    folder: Path | None = None  # it was opened from, beside which more of it may be kept

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def unit_size(self) -> int:
        """Consecutive samples that must share a row."""
        return 2 if self.is_paired else 1

    @property
    def num_units(self) -> int:
        """Single samples, or pairs."""
        return len(self) // self.unit_size

    def lengths_of(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[N], tokens of N samples."""
        if self.lengths is None:
            return sample_lengths(self.samples.take(sample_ids))
        return self.lengths.take(sample_ids).astype(np.int64)

    def unit_lengths(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[N], tokens of N units."""
        return self.lengths_of(self.samples_of(units)).reshape(-1, self.unit_size).sum(axis=1)

    def samples_of(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The samples of N units, [N * unit_size]: pair 3 is the samples 6 and 7."""
        return (units[:, None] * self.unit_size + np.arange(self.unit_size)).reshape(-1)

    def units_by_source(self) -> list[range]:
        """The units of each source. They lie in the order of the sources, and so are searched."""

        def source_of(unit: int) -> int:
            record = self.samples[unit * self.unit_size]["record"]
            return int(self.records[record]["source"])

        units = range(self.num_units)
        ends = [bisect_left(units, number + 1, key=source_of) for number in range(len(self.paths))]
        return [range(*one) for one in zip([0, *ends], ends, strict=False)]

    def times_shown(self) -> list[tuple[range, int, int]]:
        """Of each source its units, how often an epoch shows all, and how many once more."""
        return [
            (units, int(weight), round((weight - int(weight)) * len(units)))
            for units, weight in zip(self.units_by_source(), self.source_weights, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Of the compiled samples and of how often each source is shown."""
        weights = json.dumps(list(self.source_weights))
        return hashlib.sha256(f"{self.summary.fingerprint} {weights}".encode()).hexdigest()

    def let_go(self) -> None:
        """Give back the pages that were read: the system keeps them, and maps them again at once.

        A page that is read brings up to 2 MB of neighbours along, so a rank that reads here and
        there would soon count whole files as its own memory.
        """
        arrays = (self.samples, self.records, self.tokens, self.spans, self.weights)
        for mapping in filter(None, map(_find_mapping, arrays)):
            mapping.madvise(mmap.MADV_DONTNEED)

    def origin(self, sample_id: int) -> str:
        """Where a sample comes from, as `file:line`."""
        record = self.records[self.samples[sample_id]["record"]]
        return f"{self.paths[record['source']]}:{record['line']}"

    def sample(self, sample_id: int) -> SampleTokens:
        """The tokens of one sample."""
        return gather_sample(self.samples[sample_id], self.tokens, self.spans, self.weights)

    def mismatched(self, sample_id: int) -> SampleTokens:
        """A sample's prompt with the answer to the prompt of the record before, cut to a row."""
        samples = self.samples
        first = bisect_left(samples, samples[sample_id]["record"], key=lambda one: one["record"])
        prompt, other = self.sample(sample_id), self.sample((first - 1) % len(self))
        ours, theirs = int((prompt.spans != 0).argmax()), int((other.spans != 0).argmax())
        end = self.max_seq_length
        return SampleTokens(
            tokens=np.concatenate([prompt.tokens[:ours], other.tokens[theirs:]])[:end],
            spans=np.concatenate([prompt.spans[:ours], other.spans[theirs:]])[:end],
            weights=np.concatenate([prompt.weights[:ours], other.weights[theirs:]])[:end],
        )


def gather_sample(
    sample: np.void,
    tokens: npt.NDArray[np.uint32],
    spans: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.float32] | None,
) -> SampleTokens:
    """A sample's tokens out of all: the shared history, then its own.

    History carries no loss in this sample, whatever the answers in it do in another.
    """
    _, start, length, own_start, own_length, *_ = sample.tolist()
    history, own = slice(start, start + length), slice(own_start, own_start + own_length)
    all_spans = np.concatenate([np.zeros(length, np.uint8), spans[own]])
    all_weights = (all_spans != 0).astype(np.float32)
    if weights is not None:
        all_weights[length:] = weights[own]
    return SampleTokens(np.concatenate([tokens[history], tokens[own]]), all_spans, all_weights)


def sample_lengths(samples: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """[S], tokens of each sample of a SAMPLE array."""
    return samples["history_length"].astype(np.int64) + samples["target_length"]


def write_summary(
    folder: Path, summary: DataSummary, sums: Mapping[str, str], identity: Mapping[str, Any]
) -> None:
    """Write the summary for those who open it.

    Args:
        folder: of the data set.
        summary: of what it holds.
        sums: XXH3 of every file, in 128 bits.
        identity: of what it was compiled from.
    """
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.bin"))}
    content = {
        "identity": dict(identity),
        "summary": asdict(summary),
        "sizes": sizes,
        SUMS: dict(sums),
    }
    sealed = {**content, "own_sha256": _hash_content(content)}
    (folder / "summary.json").write_text(json.dumps(sealed, indent=1))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a complete data set, as far as sizes tell."""
    try:
        content = json.loads((folder / "summary.json").read_text())
        own = content.pop("own_sha256")
        sizes = content["sizes"]
        names = {path.name for path in folder.glob("*.bin")}
        is_ours = own == _hash_content(content) and names == sizes.keys()
        is_ours = is_ours and names == content[SUMS].keys()
        return is_ours and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def _hash_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_summary(folder: Path) -> DataSummary:
    """The summary of a whole folder."""
    return DataSummary(**json.loads((folder / "summary.json").read_text())["summary"])


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What a whole folder was compiled from; None where it does not say so."""
    content = json.loads((folder / "summary.json").read_text())
    identity: dict[str, Any] | None = content.get("identity")
    return identity


def read_sums(folder: Path) -> dict[str, str]:
    """XXH3 of each file of a whole folder, as it was written."""
    return dict(json.loads((folder / "summary.json").read_text())[SUMS])


def map_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """One of the arrays of `DTYPES`, mapped from its file."""
    path = folder / f"{name}.bin"
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, DTYPES[name])
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Not np.memmap: each slice of one takes twice as long.
    return np.frombuffer(content, DTYPES[name])


def _find_mapping(array: npt.NDArray[Any] | None) -> mmap.mmap | None:
    """The file that an array of `map_array` is mapped from."""
    base: object = array.base if array is not None else None
    content = base.obj if isinstance(base, memoryview) else None
    return content if isinstance(content, mmap.mmap) else None

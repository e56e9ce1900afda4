"""Sources to a compiled data set in a folder, chunk by chunk."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hunyuan_train.data.compiled.compile import CompiledChunk, CompileSettings, compile_chunk
from hunyuan_train.data.compiled.repeats import RepeatFinder, SeenHashes
from hunyuan_train.data.dataset import DTYPES, RECORD, DataSummary, write_summary
from hunyuan_train.data.findings import POLICIES, FindingLog
from hunyuan_train.data.reading.readers import Chunk, read_chunks
from hunyuan_train.data.reading.sources import Source
from hunyuan_train.data.reading.workers import count_workers, map_in_order
from hunyuan_train.data.rendering.encode import EncodedChunk
from hunyuan_train.data.rendering.mode_choices import ask_for_mode
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.segments import SPAN_NONE, SPAN_TEXT, SPANS
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.progress import show_progress

_MAX_ERRORS_SHOWN = 20


def compile_sources(
    sources: Sequence[Source],
    hashes: Sequence[str],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    *,
    num_workers: int,
) -> Iterator[tuple[int, CompiledChunk]]:
    """Every chunk of every source, compiled, with the number of its source; in order.

    Raises:
        ChangedFileError: a source is not what its hash says.
    """
    num_bytes = sum(source.path.stat().st_size for source in sources)
    work = functools.partial(
        _compile_numbered,
        settings=settings,
        folder=tokenizer.folder,
        add_tokens=tokenizer.added_from,
    )
    chunks = (
        (number, chunk)
        for number, (source, content) in enumerate(zip(sources, hashes, strict=True))
        for chunk in read_chunks(source.path, expected_hash=content)
    )
    results = map_in_order(work, chunks, num_workers=count_workers(num_workers, num_bytes))
    with show_progress("tokenizing", num_bytes) as advance:
        for number, compiled in results:
            advance(compiled.num_bytes)
            yield number, compiled


def _compile_numbered(
    item: tuple[int, Chunk],
    *,
    settings: CompileSettings,
    folder: Path,
    add_tokens: Path | None,
) -> tuple[int, CompiledChunk]:
    number, chunk = item
    return number, compile_chunk(chunk, settings, load_tokenizer(folder, add_tokens))


def build_dataset(
    sources: Sequence[Source],
    hashes: Sequence[str],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    eval_questions: SeenHashes | None,
    num_workers: int,
) -> None:
    """Write a data set into an empty folder.

    Args:
        sources: the files.
        hashes: of the content of each, which is what gets tokenized.
        identity: of all that it is made of, for the summary.

    Raises:
        DataError: naming the findings that are errors; the folder is then of no use.
        ChangedFileError: a file is not what its hash says.
    """
    repeats = RepeatFinder(settings.build_policies().actions, eval_questions)
    log = FindingLog(max_examples=_MAX_ERRORS_SHOWN)
    counts: Counter[str] = Counter()
    with DatasetWriter(folder) as writer:
        compiling = compile_sources(sources, hashes, settings, tokenizer, num_workers=num_workers)
        for number, compiled in compiling:
            is_dropped = repeats.find(compiled)
            leave_out(compiled.encoded, is_dropped)
            log.add(compiled.findings)
            counts.update(compiled.counts)
            counts.update(count_samples(compiled.encoded, tokenizer.eos_id))
            writer.add(number, compiled)
        _refuse(log, counts, settings, tokenizer.grammar)
        fingerprint, sums = writer.finish()
    write_summary(folder, _summarise(fingerprint, counts, log), sums, identity)


def leave_out(encoded: EncodedChunk, is_dropped: npt.NDArray[np.bool_]) -> None:
    """Take the samples of some records out of a chunk.

    Args:
        encoded: the chunk.
        is_dropped: [R], which records.
    """
    is_kept = ~is_dropped[encoded.samples["record"]]
    encoded.samples = encoded.samples[is_kept]
    if encoded.sides is not None:
        encoded.sides = encoded.sides[is_kept]


def count_samples(encoded: EncodedChunk, eos_id: int) -> Counter[str]:
    """Samples by mode, and labels by span, of the samples that are left."""
    samples = encoded.samples
    counts = Counter(samples=len(samples), tokens=int(encoded.sample_lengths().sum()))
    for number, mode in enumerate(MODES):
        counts[f"mode_{mode}"] = int(np.count_nonzero(samples["mode"] == number))
    edges = np.zeros(len(encoded.tokens) + 1, np.int8)
    edges[samples["target_start"]] += 1
    edges[samples["target_start"] + samples["target_length"]] -= 1
    is_target = edges.cumsum()[:-1] > 0
    target_spans = encoded.spans[is_target]
    for number, span in enumerate(SPANS):
        counts[f"span_{span}"] = int(np.count_nonzero(target_spans == number))
    is_answer = (target_spans != SPAN_NONE) & (target_spans != SPAN_TEXT)
    is_end = encoded.tokens[is_target] == eos_id
    counts["turns"] = int(np.count_nonzero(is_end & is_answer))
    return counts


def _refuse(
    log: FindingLog, counts: Counter[str], settings: CompileSettings, grammar: Grammar
) -> None:
    num_untagged = log.counts["untagged", "error"]
    refuse_errors(log, settings.policy, ask_for_mode(log.examples, num_untagged, grammar))
    if not counts["samples"]:
        raise DataError(
            f"no sample is left of {counts['records']:,} records{_list_losses(log)}; "
            f"`hunyuan-train data check` says what became of them"
        )


def _list_losses(log: FindingLog) -> str:
    """Which kinds of findings left records out."""
    losses = [
        f"{kind} left {number:,} out ({POLICIES[kind].meaning})"
        for kind, number in log.by_kind("drop").items()
    ]
    if not losses:
        return ""
    return f": {', '.join(losses)}; give other data, or set data_policy or overlong otherwise"


def refuse_errors(log: FindingLog, policy: Mapping[str, str], question: str = "") -> None:
    """Name the first errors, and the one setting that accepts all that may be accepted.

    Args:
        log: what was found.
        policy: what the user has chosen already, which the setting repeats.
        question: about the mode of untagged records, where there are any.

    Raises:
        DataError: there are errors.
    """
    errors = [finding for finding in log.examples if finding.action == "error"]
    if not errors:
        return
    if question and all(finding.kind == "untagged" for finding in errors):
        raise DataError(question)
    shown = "\n  ".join(str(finding) for finding in errors[:_MAX_ERRORS_SHOWN])
    num_more = log.count("error") - min(len(errors), _MAX_ERRORS_SHOWN)
    more = f"\n  and {num_more:,} more" if num_more else ""
    raise DataError(
        f"the data has {log.count('error'):,} error(s):\n  {shown}{more}\n"
        f"Fix them{_suggest_policy(log, policy)}; "
        "`hunyuan-train data check` lists them, with --json every one, and its --fix writes a "
        "fixed file." + (f"\n{question}" if question else "")
    )


def _suggest_policy(log: FindingLog, policy: Mapping[str, str]) -> str:
    """One value for all kinds of errors, with what was chosen before: a flag is not given twice."""
    allowed = {kind: POLICIES[kind].allowed for kind in log.by_kind("error") if kind != "untagged"}
    accepted = {
        kind: "drop" if "drop" in actions else "note"
        for kind, actions in allowed.items()
        if {"drop", "note"} & set(actions)
    }
    if not accepted:
        return ""
    value = ",".join(f"{kind}={action}" for kind, action in {**policy, **accepted}.items())
    what = "leave such records out" if "drop" in accepted.values() else "accept them"
    return f", or {what} with --data_policy {value}"


def _summarise(fingerprint: str, counts: Counter[str], log: FindingLog) -> DataSummary:
    by_span = {span: counts[f"span_{span}"] for span in SPANS[1:]}
    return DataSummary(
        fingerprint=fingerprint,
        num_records=counts["records"],
        num_samples=counts["samples"],
        num_fast=counts["mode_fast"],
        num_slow=counts["mode_slow"],
        num_plain=counts["mode_plain"],
        num_text=counts["mode_text"],
        num_turns=counts["turns"],
        num_tokens=counts["tokens"],
        num_label_tokens=sum(by_span.values()),
        num_label_tokens_by_span=by_span,
        num_dropped=log.by_kind("drop"),
        num_fixed=log.by_kind("fix"),
        num_findings=log.by_kind(),
        noted_fields=log.noted_fields(),
        growth=counts["tokens_laid_out"] / max(counts["tokens_once"], 1),
    )


class DatasetWriter:
    """Appends compiled chunks to the files of a data set, hashing and summing as it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: (folder / f"{name}.bin").open("wb") for name in DTYPES}
        self.hashes = {name: hashlib.sha256() for name in DTYPES}  # for the fingerprint
        self.sums = {name: xxhash.xxh3_128() for name in DTYPES}  # for those who verify files
        self.num_tokens = 0
        self.num_records = 0
        self.has_weights = False
        self.has_sides = False

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, source: int, compiled: CompiledChunk) -> None:
        """Append the tokens, samples and records of one chunk."""
        encoded = compiled.encoded
        samples = encoded.samples.copy()
        samples["history_start"] += self.num_tokens
        samples["target_start"] += self.num_tokens
        samples["record"] += self.num_records
        records = np.zeros(len(compiled.lines), RECORD)
        records["source"], records["line"] = source, compiled.lines
        records["hash"] = compiled.hashes
        if len(compiled.question_hashes):
            records["question_hash"] = compiled.question_hashes
        self._write("tokens", encoded.tokens)
        self._write("spans", encoded.spans)
        self._add_weights(encoded)
        self._write("samples", samples)
        self._write("lengths", encoded.sample_lengths())
        if encoded.sides is not None:
            self.has_sides = True
            self._write("sides", encoded.sides)
        self._write("records", records)
        self.num_tokens += len(encoded.tokens)
        self.num_records += len(records)

    def _add_weights(self, encoded: EncodedChunk) -> None:
        """Weights are written from the first one on that is not 1; before it they are filled in."""
        if encoded.weights is not None and not self.has_weights:
            self.has_weights = True
            self.files["spans"].flush()
            spans = np.fromfile(self.folder / "spans.bin", DTYPES["spans"])
            self._write("weights", (spans != 0).astype(DTYPES["weights"])[: self.num_tokens])
        if self.has_weights:
            self._write("weights", encoded.all_weights())

    def _write(self, name: str, array: npt.NDArray[Any]) -> None:
        content = np.ascontiguousarray(array, DTYPES[name]).data.cast("B")
        self.hashes[name].update(content)
        self.sums[name].update(content)
        self.files[name].write(content)

    def finish(self) -> tuple[str, dict[str, str]]:
        """Bring everything to the disk; return the fingerprint of it, and the sum of each file."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        # Lengths say nothing new, and fingerprints are older than their file.
        hashes = {name: self.hashes[name].hexdigest() for name in DTYPES if name != "lengths"}
        sums = {f"{name}.bin": self.sums[name].hexdigest() for name in DTYPES}
        if not self.has_sides:  # dialogues keep the fingerprint that they had without preferences
            del hashes["sides"]
            self._remove("sides", sums)
        if not self.has_weights:
            self._remove("weights", sums)
        return hashlib.sha256("".join(hashes.values()).encode()).hexdigest(), sums

    def _remove(self, name: str, sums: dict[str, str]) -> None:
        (self.folder / f"{name}.bin").unlink()
        del sums[f"{name}.bin"]

"""The linter: everything there is to say about data files before anything is trained on them.

It reads the same way as training (compile.py), so the two cannot disagree, and goes on where
training would stop. Memory does not grow with the files beyond a few numbers per record.

The door of `inspection`: files go in, all that can be said of them comes out.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.compiled.build import count_samples
from hunyuan_train.data.compiled.compile import (
    CompileSettings,
    Record,
    encode_records,
    read_records,
)
from hunyuan_train.data.compiled.preferences import count_labels, count_pairs
from hunyuan_train.data.compiled.repeats import RepeatFinder, SeenHashes
from hunyuan_train.data.findings import Finding, FindingLog
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import Chunk, read_chunks
from hunyuan_train.data.reading.sources import Source, Unread, report_unread
from hunyuan_train.data.reading.workers import count_workers, map_in_order
from hunyuan_train.data.records.convert import to_preference, to_record
from hunyuan_train.data.records.hashes import hash_question
from hunyuan_train.families.grammar.dialogue import Dialogue, dump_json
from hunyuan_train.families.grammar.find import find_grammar, load_tokenizer
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.progress import show_progress

# Scripts in the order in which one decides: Japanese and Korean text holds Chinese characters too.
_SCRIPTS = {
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Indic or Thai": re.compile("[\u0900-\u0e7f]"),
}
_SCRIPT_SAMPLE = 256  # characters of the last answer that decide its script


@dataclass(frozen=True, slots=True, kw_only=True)
class LintOptions:
    """What to look at beside the findings."""

    # For lengths, shares of loss, what is too long; and for the grammar that records are read in.
    tokenizer_folder: Path | None = None
    # Which records to give: none, all in canonical form, or as they are where nothing was fixed.
    records: Literal["none", "canonical", "fixed"] = "none"


@dataclass(slots=True)
class InspectedChunk:
    """What there is to know about a chunk, without its tokens."""

    path: str
    findings: list[Finding]
    counts: Counter[str]
    forms: Counter[str]
    modes: Counter[str]
    scripts: Counter[str]
    lines: npt.NDArray[np.int64]  # [R]
    hashes: npt.NDArray[np.uint64]  # [R], of the dialogue
    question_hashes: npt.NDArray[np.uint64]  # [R], of what comes before the last answer
    turns: Counter[int]  # dialogues by their number of answers
    lengths: npt.NDArray[np.int64]  # [S], tokens of each sample, where there is a tokenizer
    overlong_lengths: npt.NDArray[np.int64]  # of samples left out for it
    records: list[str]  # [R], as JSON, where they are wanted
    num_bytes: int


def inspect_chunk(
    chunk: Chunk, *, settings: CompileSettings, options: LintOptions
) -> InspectedChunk:
    """Read and check the records of a chunk, and measure them where there is a tokenizer."""
    findings: list[Finding] = []
    counts: Counter[str] = Counter()
    policies = settings.build_policies()
    grammar = find_grammar(options.tokenizer_folder)
    records = list(read_records(chunk, settings.reading(grammar), policies, findings, counts))
    dialogues = [record.dialogue for record in records]
    lengths = overlong_lengths = np.zeros(0, np.int64)
    if options.tokenizer_folder:
        tokenizer = load_tokenizer(options.tokenizer_folder)
        encoded, left_out = encode_records(
            records, settings, tokenizer, chunk.path, findings, counts
        )
        counts.update(count_samples(encoded, tokenizer.eos_id))
        if settings.records == "pairs":
            counts.update(count_pairs(encoded))
        elif settings.records == "judged":
            counts.update(count_labels(encoded))
        lengths, overlong_lengths = encoded.sample_lengths(), np.array(left_out, np.int64)
    questions = dialogues if settings.compares_questions else []
    wanted = records if options.records != "none" else []
    return InspectedChunk(
        path=chunk.path,
        findings=findings,
        counts=counts,
        forms=Counter([dialogue.form for dialogue in dialogues]),
        modes=Counter([_name_mode(dialogue) for dialogue in dialogues]),
        scripts=Counter([_name_script(dialogue) for dialogue in dialogues]),
        lines=np.array([record.line for record in records], np.int64),
        hashes=np.array([record.content_hash for record in records], np.uint64),
        question_hashes=np.array(
            [hash_question(one.messages, grammar) for one in questions], np.uint64
        ),
        turns=Counter([_count_answers(one) for one in dialogues if not one.is_document]),
        lengths=lengths,
        overlong_lengths=overlong_lengths,
        records=[_write_record(record, options, grammar) for record in wanted],
        num_bytes=chunk.num_bytes,
    )


def _write_record(record: Record, options: LintOptions, grammar: Grammar) -> str:
    # Where the run's mode was taken, the record must state it, to be read alike without the flag.
    dialogues = [side.dialogue for side in record.sides] or [record.dialogue]
    has_run_mode = any(dialogue.has_run_mode for dialogue in dialogues)
    if record.is_fixed or has_run_mode or options.records == "canonical":
        if record.sides:
            return dump_json(to_preference(record.sides, grammar))
        return dump_json(to_record(record.dialogue, grammar))
    if b"\n" in record.raw:  # of a JSON array; here a record is a line
        return dump_json(decode_record(record.raw, []))
    return record.raw.decode()


def _name_mode(dialogue: Dialogue) -> str:
    if dialogue.is_document:
        return "text"
    modes = {
        message.mode
        for message in dialogue.messages
        if message.role == "assistant" and not message.is_context
    }
    return modes.pop() if len(modes) == 1 else "mixed"


def _name_script(dialogue: Dialogue) -> str:
    text = dialogue.messages[-1].content[:_SCRIPT_SAMPLE]
    if text.isascii():
        return "Latin"
    return next((name for name, script in _SCRIPTS.items() if script.search(text)), "Latin")


def _count_answers(dialogue: Dialogue) -> int:
    return sum(message.role == "assistant" for message in dialogue.messages)


@dataclass(slots=True)
class LintReport:
    """What was found in some files, added up."""

    settings: CompileSettings
    log: FindingLog = field(default_factory=FindingLog)
    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    lengths: list[npt.NDArray[np.int64]] = field(default_factory=list)
    overlong: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def add(self, chunk: InspectedChunk) -> None:
        """Count one chunk in."""
        self.log.add(chunk.findings)
        self.counts.update(chunk.counts)
        self.forms.update(chunk.forms)
        self.modes.update(chunk.modes)
        self.scripts.update(chunk.scripts)
        self.turns.update(chunk.turns)
        self.lengths.append(chunk.lengths)
        self.overlong.append(chunk.overlong_lengths)

    def sample_lengths(self) -> npt.NDArray[np.int64]:
        """[S], tokens of all samples, where a tokenizer was given."""
        return np.concatenate([np.zeros(0, np.int64), *self.lengths])

    def overlong_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample that was left out because it is too long."""
        return np.concatenate([np.zeros(0, np.int64), *self.overlong])

    @property
    def num_errors(self) -> int:
        """Findings for which training refuses the data."""
        return self.log.count("error")


def lint_sources(
    sources: Sequence[Source],
    settings: CompileSettings,
    options: LintOptions,
    *,
    eval_sources: Sequence[Source] = (),
    unread: Sequence[Unread] = (),
    num_workers: int = 0,
    on_chunk: Callable[[InspectedChunk], None] = lambda chunk: None,
) -> LintReport:
    """Inspect files and add up what is found.

    Args:
        eval_sources: files whose questions must not occur in these.
        unread: what lies beside the files and is not read.
        on_chunk: is given each chunk in order, its findings complete, its repeats taken out.
    """
    report = LintReport(settings)
    report.log.add(report_unread(unread, settings.build_policies()))
    repeats = RepeatFinder(settings.build_policies().actions)
    if eval_sources:
        settings = replace(settings, compares_questions=True)
        repeats.eval_questions = SeenHashes()
        # A question counts in whatever mode it is asked, also where nobody has said in which.
        held_out = replace(settings, policy={**settings.policy, "untagged": "note"})
        for chunk in _inspect(eval_sources, held_out, LintOptions(), num_workers):
            repeats.eval_questions.add(chunk.question_hashes)
    for chunk in _inspect(sources, settings, options, num_workers):
        is_dropped = repeats.find(chunk)
        if options.records != "none":
            kept = np.flatnonzero(~is_dropped).tolist()
            chunk.records = [chunk.records[number] for number in kept]
        report.add(chunk)
        on_chunk(chunk)
    return report


def _inspect(
    sources: Sequence[Source], settings: CompileSettings, options: LintOptions, num_workers: int
) -> Iterator[InspectedChunk]:
    num_bytes = sum(source.path.stat().st_size for source in sources)
    work = functools.partial(inspect_chunk, settings=settings, options=options)
    chunks = (chunk for source in sources for chunk in read_chunks(source.path))
    workers = count_workers(num_workers, num_bytes)
    with show_progress("checking", num_bytes) as advance:
        for chunk in map_in_order(work, chunks, num_workers=workers):
            advance(chunk.num_bytes)
            yield chunk

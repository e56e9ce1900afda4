"""A chunk of raw records to tokens, with everything that was found on the way.

This is the one path from a file to samples: training, `data check` and `data encode` all take it,
so that what one refuses the others refuse too. Only `data encode` takes records without a mode.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from hunyuan_train.data.compiled.overlong import LongSample, fit_samples, report_long
from hunyuan_train.data.compiled.preferences import encode_preferences
from hunyuan_train.data.findings import Finding, PolicySet, Problem, build_policies
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import Chunk
from hunyuan_train.data.records.hashes import hash_messages, hash_question
from hunyuan_train.data.records.preferences import (
    Side,
    asks_for_preferences,
    explain_labels,
    read_sides,
)
from hunyuan_train.data.records.record import Reading, RecordKind, read_dialogue
from hunyuan_train.data.rendering.documents import render_records, split_documents
from hunyuan_train.data.rendering.encode import EncodedChunk, encode_renderings
from hunyuan_train.families.grammar.dialogue import Dialogue
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import Tokenizer

Split = Literal["all", "train", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """Everything beside the data and the tokenizer that decides which tokens come out."""

    max_seq_length: int
    mode: str = "auto"  # of records that state none: auto, fast, slow, plain
    history: str = "strip"  # strip, keep
    overlong: str = "error"  # error, drop, drop_turns
    now: str = ""  # of records with tools that state none; "" for one seeded by the dialogue
    policy: Mapping[str, str] = field(default_factory=dict)  # finding kind to action
    split: Split = "all"
    held_out_below: int = 0  # the hash below which a question is on the eval side
    compares_questions: bool = False  # with those of an evaluation set
    records: RecordKind = "dialogues"

    def reading(self, grammar: Grammar) -> Reading:
        """How records are read for a model of this grammar."""
        return Reading(grammar, records=self.records, mode=self.mode, now=self.now)

    def build_policies(self) -> PolicySet:
        """The action of every kind of finding."""
        overlong = "error" if self.overlong == "error" else "drop"
        return build_policies({"overlong": overlong, **self.policy})


@dataclass(slots=True)
class CompiledChunk:
    """What became of one chunk."""

    path: str
    findings: list[Finding]
    counts: Counter[str]  # records, used, tokens and more: what a summary adds up
    lines: npt.NDArray[np.int64]  # [R], of the records used
    hashes: npt.NDArray[np.uint64]  # [R], of their content
    question_hashes: npt.NDArray[np.uint64]  # [R], or [0] where nothing is compared
    encoded: EncodedChunk
    num_bytes: int


@dataclass(slots=True)
class Record:
    """A usable dialogue, or the two of a pair, and where it came from."""

    line: int
    dialogue: Dialogue  # of a pair, the chosen one
    content_hash: int
    raw: bytes  # its JSON text
    is_fixed: bool  # the dialogue is not what the text says
    sides: Sequence[Side] = ()  # of preferences


def compile_chunk(chunk: Chunk, settings: CompileSettings, tokenizer: Tokenizer) -> CompiledChunk:
    """Read, check, render and tokenize the records of a chunk."""
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    policies = settings.build_policies()
    grammar = tokenizer.grammar
    records = [
        record
        for record in read_records(chunk, settings.reading(grammar), policies, findings, counts)
        if _is_in_split(record.dialogue, settings, grammar)
    ]
    counts["records"] -= counts["used"] - len(records)  # of this side of the split
    counts["used"] = len(records)
    questions = records if settings.compares_questions else []
    encoded, _ = encode_records(records, settings, tokenizer, chunk.path, findings, counts)
    return CompiledChunk(
        path=chunk.path,
        findings=findings,
        counts=counts,
        lines=np.array([record.line for record in records], np.int64),
        hashes=np.array([record.content_hash for record in records], np.uint64),
        question_hashes=np.array(
            [hash_question(one.dialogue.messages, grammar) for one in questions], np.uint64
        ),
        encoded=encoded,
        num_bytes=chunk.num_bytes,
    )


def encode_records(
    records: Sequence[Record],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    path: str,
    findings: list[Finding],
    counts: Counter[str],
) -> tuple[EncodedChunk, list[int]]:
    """The samples of some dialogues, and the lengths of those that are left out as too long."""
    if settings.records != "dialogues":
        return encode_sides(records, settings, tokenizer, path, findings, counts)
    dialogues = [record.dialogue for record in records]
    renderings = render_records(dialogues, tokenizer.grammar, history=settings.history)
    whole = encode_renderings(renderings, tokenizer)
    encoded = split_documents(whole, max_length=settings.max_seq_length)
    counts["tokens_laid_out"] = int(encoded.sample_lengths().sum())
    counts["tokens_once"] = encoded.num_tokens_once
    encoded, long_samples = fit_samples(
        encoded,
        dialogues,
        renderings,
        tokenizer,
        max_seq_length=settings.max_seq_length,
        history=settings.history,
        can_drop_turns=settings.overlong == "drop_turns",
    )
    action = settings.build_policies().actions["overlong"]
    for long in long_samples:
        line = records[long.record].line
        findings.append(report_long(path, line, long, action, settings.max_seq_length))
    return encoded, [long.num_tokens for long in long_samples if not long.num_turns_dropped]


def encode_sides(
    records: Sequence[Record],
    settings: CompileSettings,
    tokenizer: Tokenizer,
    path: str,
    findings: list[Finding],
    counts: Counter[str],
) -> tuple[EncodedChunk, list[int]]:
    """The samples of some preferences, one for each side, and the lengths of what is left out."""
    policies = settings.build_policies()
    encoded, reports = encode_preferences(
        [record.sides for record in records],
        tokenizer,
        counts,
        max_seq_length=settings.max_seq_length,
        history=settings.history,
        can_drop_turns=settings.overlong == "drop_turns",
    )
    left_out = []
    for report in reports:
        line = records[report.record].line
        if isinstance(report, LongSample):
            action = policies.actions["overlong"]
            findings.append(report_long(path, line, report, action, settings.max_seq_length))
            left_out += [] if report.num_turns_dropped else [report.num_tokens]
        else:
            _decide(path, line, [report.problem], policies, findings)
    return encoded, left_out


def read_records(
    chunk: Chunk,
    reading: Reading,
    policies: PolicySet,
    findings: list[Finding],
    counts: Counter[str],
) -> Iterator[Record]:
    """The usable dialogues of a chunk; every problem goes to `findings`."""
    for line, problem in chunk.problems:
        _decide(chunk.path, line, [problem], policies, findings)
    for index, (line, raw) in enumerate(zip(chunk.lines, chunk.records, strict=True)):
        problems: list[Problem] = []
        value = decode_record(raw, problems)
        sides = read_record(value, reading, problems) if value is not None or not problems else []
        if chunk.first_element is not None:  # several may share a line
            element = f"[{chunk.first_element + index}]"
            problems = [one._replace(field=f"{element}.{one.field}") for one in problems]
        num_before = len(findings)
        is_used = _decide(chunk.path, line, problems, policies, findings)
        counts["records"] += 1
        if is_used and sides:
            counts["used"] += 1
            dialogue = sides[0].dialogue
            said = [message for side in sides for message in side.dialogue.messages]
            content_hash = hash_messages(said, dialogue.tools)
            is_fixed = any([finding.action == "fix" for finding in findings[num_before:]])
            judged = sides if reading.records != "dialogues" else ()
            yield Record(line, dialogue, content_hash, raw, is_fixed, judged)


def read_record(value: object, reading: Reading, problems: list[Problem]) -> list[Side]:
    """The dialogues of a decoded record; a plain one is a side that nobody has judged."""
    if reading.records != "dialogues":
        return read_sides(value, reading, problems)
    dialogue = read_dialogue(value, reading, problems)
    explain_labels(value, problems)
    if dialogue is not None:
        return [Side(dialogue, 0)]
    if asks_for_preferences(value):
        reason = "a chosen and a rejected answer, of which supervised fine-tuning learns nothing"
        fix = "train with --objective dpo, or give the chosen answer alone, as completion"
        problems[:] = [one for one in problems if one.kind != "form"]  # which this one explains
        problems.append(Problem("form", "rejected", reason, fix))
    return []


def _decide(
    path: str,
    line: int,
    problems: Iterable[Problem],
    policies: PolicySet,
    findings: list[Finding],
) -> bool:
    """Turn problems into findings; whether a record with them is used."""
    is_used = True
    for problem in problems:
        action = policies.decide(problem)
        fix = problem.fix
        if action == "error" and problem.is_repaired:
            fix = f"fix it, or choose {problem.kind}=fix: {fix}"
        elif action == "drop" and problem.is_repaired:
            fix = f"to keep it choose {problem.kind}=fix: {fix}"
        findings.append(
            Finding(path, line, problem.kind, action, problem.field, problem.reason, fix)
        )
        is_used = is_used and action not in ("error", "drop")
    return is_used


def _is_in_split(dialogue: Dialogue, settings: CompileSettings, grammar: Grammar) -> bool:
    """Whether a record is on this side of the held-out share; no question is on both."""
    if settings.split == "all":
        return True
    is_held_out = hash_question(dialogue.messages, grammar) < settings.held_out_below
    return is_held_out == (settings.split == "eval")

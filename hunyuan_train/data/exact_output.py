"""`data render` and `data encode`: the exact text, ids and loss of every record."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hunyuan_train.data.compiled.compile import Record, read_records
from hunyuan_train.data.findings import Finding, build_policies, parse_policies
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import Chunk, read_chunks
from hunyuan_train.data.reading.sources import find_sources
from hunyuan_train.data.records.forms import to_chat_form
from hunyuan_train.data.records.record import Reading
from hunyuan_train.data.rendering.documents import render_record, split_documents
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import Dialogue
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.segments import Segment
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.vocabulary import describe_folder
from hunyuan_train.terminal import complain, say

Arguments = argparse.Namespace

# A mode is asked for when records are trained on; shown or written they may stay without one.
UNTAUGHT = {"untagged": "note"}


def choose_policy(arguments: Arguments) -> dict[str, str]:
    """What is done about each kind of finding, as the flags say."""
    return parse_policies(",".join(arguments.policy))


def open_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer, and say what its folder has beside that is not read."""
    tokenizer = load_tokenizer(folder)
    for remark in describe_folder(tokenizer):
        complain(remark)
    return tokenizer


def read_rows(
    arguments: Arguments, reading: Reading, *, as_prompts: bool = False
) -> Iterator[tuple[Record | None, list[Finding]]]:
    """Each record of some files in turn, None where it is refused, and what was found in it.

    Args:
        arguments: name the files, and what is done about each kind of finding.
        reading: how records are read.
        as_prompts: a record that ends in a question is a prompt, and nothing is missing from it.
    """
    policies = build_policies(UNTAUGHT | choose_policy(arguments))
    for source in find_sources(arguments.file, setting="FILE"):
        for chunk in read_chunks(source.path):
            for line, problem in chunk.problems:
                if policies.decide(problem) == "error":
                    raise DataError(f"{chunk.path}:{line}: {problem.reason}; {problem.fix}")
            for line, raw in zip(chunk.lines, chunk.records, strict=True):
                findings: list[Finding] = []
                alone = Chunk(chunk.path, [line], [raw])
                is_prompt = as_prompts and _ends_in_question(raw)
                records = read_records(
                    alone, replace(reading, is_prompt=is_prompt), policies, findings, Counter()
                )
                yield next(records, None), findings


def _ends_in_question(raw: bytes) -> bool:
    record, _ = to_chat_form(decode_record(raw, []), [])
    last = record["messages"][-1:] if record else []
    return bool(last) and isinstance(last[0], dict) and last[0].get("role") in ("user", "tool")


def run_render(arguments: Arguments) -> int:
    """Print the text of each record as the last of its samples has it, or as a server sends it.

    With --history keep a record is taken as it is written, as `encode` does it.
    """
    grammar = open_tokenizer(arguments.tokenizer).grammar
    is_kept = arguments.history == "keep" or grammar.write_served is not None
    is_as_written = is_kept and arguments.mode == "auto"
    if arguments.reasoning_effort and arguments.reasoning_effort not in grammar.efforts:
        known = ", ".join(grammar.efforts) or "none: it asks with --mode fast or slow"
        raise DataError(
            f"reasoning_effort is {arguments.reasoning_effort}; the grammar {grammar.name} of this "
            f"tokenizer has {known}"
        )
    reading = Reading(
        grammar,
        mode=arguments.mode,
        effort=arguments.reasoning_effort,
        now=arguments.now,
        is_as_written=is_as_written,
    )
    is_prompt = arguments.generation_prompt
    num_refused = num_untagged = 0
    rows = read_rows(arguments, reading, as_prompts=is_prompt)
    for row, (record, findings) in enumerate(rows):
        num_untagged += _is_untagged(findings)
        if record is None:
            num_refused += 1
            _print_refusals(findings)
            continue
        try:
            segments = _write_segments(record.dialogue, grammar, arguments, is_as_written)
        except DataError as error:  # a template that cannot write this record
            num_refused += 1
            complain(f"line {record.line}: {error}")
            continue
        text = "".join(segment.text for segment in segments)
        line = json.dumps({"row": row, "text": text}, ensure_ascii=False)
        say(line if arguments.json else f"row {row}:\n{text}")
    _print_untagged(0 if is_prompt else num_untagged)
    return 1 if num_refused else 0


def _write_segments(
    dialogue: Dialogue, grammar: Grammar, arguments: Arguments, is_as_written: bool
) -> list[Segment]:
    """A record as `run_render` prints it."""
    is_prompt = arguments.generation_prompt
    if dialogue.is_document:
        return render_record(dialogue, grammar).last_sample()
    if grammar.write_served and arguments.mode == "auto":
        return grammar.write_served(dialogue, adds_prompt=is_prompt)
    if is_prompt:
        dialogue = _leave_answer_out(dialogue)
    if is_prompt and not is_as_written:
        return grammar.render_prompt(dialogue, mode=dialogue.stated_mode or arguments.mode)
    return grammar.render(dialogue, history=arguments.history).last_sample()


def _leave_answer_out(dialogue: Dialogue) -> Dialogue:
    """The dialogue up to where the model goes on."""
    messages = dialogue.messages
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return replace(dialogue, messages=messages)


def _is_untagged(findings: Sequence[Finding]) -> bool:
    return any(finding.kind == "untagged" for finding in findings)


def _print_untagged(num_untagged: int) -> None:
    """Say how records without a mode were written by a command that teaches nothing."""
    if num_untagged:
        said = f"{num_untagged:,} record(s) state no mode and are written as --mode plain does it"
        complain(f"{said}; training asks for one")


def _print_refusals(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.action in ("error", "drop"):
            complain(str(finding))


def run_encode(arguments: Arguments) -> int:
    """Print the token ids and the loss mask of every sample.

    With --history keep a record is encoded as it is written, nothing fixed, so that the ids can be
    compared with those of the model's own template; a dialogue without an answer is a prompt then.
    """
    tokenizer = open_tokenizer(arguments.tokenizer)
    grammar = tokenizer.grammar
    is_as_written = arguments.history == "keep" and arguments.mode == "auto"
    is_as_written = is_as_written and grammar.write_served is None
    reading = Reading(grammar, mode=arguments.mode, now=arguments.now, is_as_written=is_as_written)
    num_refused = num_untagged = 0
    for row, (record, findings) in enumerate(read_rows(arguments, reading)):
        num_untagged += _is_untagged(findings)
        if record is None:
            num_refused += 1
            _print_refusals(findings)
            continue
        rendering = render_record(
            record.dialogue, grammar, history=arguments.history, loss=arguments.loss
        )
        whole = encode_renderings([rendering], tokenizer)
        encoded = split_documents(whole, max_length=len(whole.tokens))
        for number in range(len(encoded.samples)):
            sample = encoded.sample(number)
            ids, mask = sample.tokens.tolist(), (sample.spans != 0).astype(int).tolist()
            line = {"row": row, "input_ids": ids, "loss_mask": mask}
            text = f"row {row}: {len(ids):,} tokens, {sum(mask):,} with loss"
            say(json.dumps(line) if arguments.json else text)
    _print_untagged(num_untagged)
    return 1 if num_refused else 0

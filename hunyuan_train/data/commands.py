"""`hunyuan-train data ...`: check, convert, show, stats, render and encode.

Every command returns an exit code: 0, or 1 where the data has errors. A mistake in how it was
called raises DataError.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeAlias, get_args

from hunyuan_train.config.preference_schema import ObjectiveName, PreferenceConfig
from hunyuan_train.data.compiled.compile import CompileSettings, Record
from hunyuan_train.data.dataset import CHOSEN
from hunyuan_train.data.exact_output import (
    UNTAUGHT,
    choose_policy,
    open_tokenizer,
    read_rows,
    run_encode,
    run_render,
)
from hunyuan_train.data.findings import (
    POLICIES,
    Finding,
    FindingLog,
    build_policies,
)
from hunyuan_train.data.inspection.console import print_findings, print_stats
from hunyuan_train.data.inspection.lint import InspectedChunk, LintOptions, LintReport, lint_sources
from hunyuan_train.data.inspection.page import write_page
from hunyuan_train.data.inspection.show import show_samples, write_legend
from hunyuan_train.data.inspection.stats import summarise
from hunyuan_train.data.reading.sources import (
    Listing,
    Source,
    is_written_file,
    list_sources,
    report_unread,
)
from hunyuan_train.data.records.convert import open_output
from hunyuan_train.data.records.preferences import Side
from hunyuan_train.data.records.record import Reading, RecordKind
from hunyuan_train.data.rendering.documents import render_record
from hunyuan_train.data.rendering.mode_choices import ask_for_mode
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.find import find_grammar
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.hub.datasets import fetch_data_names
from hunyuan_train.terminal import PlainConsole, say

DEFAULT_ROW = 4096  # tokens
Arguments = argparse.Namespace
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_data_commands(subparsers: Commands) -> None:
    """Add the six commands; each sets `run`, which takes the parsed arguments."""
    _add_judging(subparsers)
    _add_looking(subparsers)


def _add_judging(subparsers: Commands) -> None:
    check = subparsers.add_parser("check", help="find what is wrong with data files")
    _add_files(check)
    _add_objective(check)
    _add_policies(check)
    check.add_argument(
        "--eval",
        nargs="+",
        default=[],
        metavar="FILE",
        help="held-out data, which must not overlap",
    )
    check.add_argument(
        "--json", action="store_true", help="print one JSON object per finding, and a summary"
    )
    check.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write all usable records, repaired where needed. OUT.changes.jsonl lists every "
        "change",
    )
    check.set_defaults(run=run_check)

    convert = subparsers.add_parser("convert", help="write any form as chat records")
    convert.add_argument("input", metavar="IN", help="file or folder, in any form")
    convert.add_argument("output", type=Path, metavar="OUT", help=".jsonl, also .jsonl.gz or .zst")
    _add_objective(convert)
    _add_reading(convert)
    _add_policies(convert)
    convert.set_defaults(run=run_convert)


def _add_looking(subparsers: Commands) -> None:
    show = subparsers.add_parser("show", help="show a record as the model sees it")
    show.add_argument("file")
    show.add_argument(
        "--row", type=_from_one, default=1, help="number of the record (1: the first)"
    )
    show.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder with hy.tiktoken or tokenizer.json"
    )
    show.add_argument("--tokens", action="store_true", help="show where each token ends")
    _add_objective(show)
    _add_reading(show)
    _add_policies(show)
    show.set_defaults(run=run_show)

    stats = subparsers.add_parser("stats", help="lengths, modes, turns and packing, also as a page")
    _add_files(stats)
    _add_objective(stats)
    _add_policies(stats)
    stats.add_argument("--html", type=Path, metavar="OUT", help="write them as a page, too")
    stats.set_defaults(run=run_stats)

    render = subparsers.add_parser(
        "render", help="the exact text of every record, to compare with a server's"
    )
    render.add_argument("file")
    render.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    render.add_argument(
        "--generation_prompt",
        action="store_true",
        help="only the prompt, without the last answer",
    )
    render.add_argument(
        "--reasoning_effort",
        default="",
        metavar="WORD",
        help="no_think, low or high, for records that state none. For models with such an effort "
        "(Hy3): records are rendered as by the model's own template",
    )
    render.add_argument("--json", action="store_true", help="row (from 0) and text per line")
    _add_reading(render)
    _add_policies(render)
    render.set_defaults(run=run_render)

    encode = subparsers.add_parser("encode", help="token ids and loss mask of every sample")
    encode.add_argument("file")
    encode.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    encode.add_argument(
        "--loss", choices=("all", "last"), default="all", help="every answer, or the last one only"
    )
    encode.add_argument(
        "--json", action="store_true", help="row (from 0), input_ids, loss_mask per line"
    )
    _add_reading(encode)
    _add_policies(encode)
    encode.set_defaults(run=run_encode)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return int(text)


def _from_one(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError("records count from 1, as lines do; give 1 or more")
    return int(text)


def _length(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError("0 leaves no room; give 1 or more")
    return int(text)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        choices=("auto", "fast", "slow", "plain"),
        default="auto",
        help="mode of records that state none. auto: inferred from tags and thoughts, and an error "
        "if there are none",
    )
    parser.add_argument(
        "--history",
        choices=("strip", "keep"),
        default="strip",
        help="strip (default): one sample per answer, with earlier answers without thoughts, as "
        "clients send them. A dialogue without tags stays one sample. keep: one sample per "
        "dialogue, with its answers unchanged",
    )
    parser.add_argument("--now", default="", help='time in tools prompts, "2026-03-02 09:15:00"')


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="files or folders, in any form")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="tokenizer for lengths and loss shares"
    )
    parser.add_argument(
        "--max_seq_length", type=_length, help="tokens of a row (4096; needs --tokenizer)"
    )
    parser.add_argument(
        "--overlong",
        choices=("error", "drop", "drop_turns"),
        help="samples longer than a row: an error (default), left out, or shortened by their "
        "oldest turns (needs --tokenizer)",
    )
    parser.add_argument("--num_workers", type=_count, default=0, help="processes (0: one per core)")
    _add_reading(parser)


def _add_objective(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--objective",
        choices=get_args(ObjectiveName),
        default="sft",
        help="objective of the records. dpo, ipo, orpo and simpo read pairs of a chosen and a "
        "rejected answer. kto reads answers with a label (default: sft, dialogues)",
    )


def _records(arguments: Arguments) -> RecordKind:
    return PreferenceConfig(objective=arguments.objective).records


def _add_policies(parser: argparse.ArgumentParser) -> None:
    kinds = ", ".join(POLICIES)
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="KIND=ACTION",
        help="error, drop, fix or note for kinds of findings, comma-separated or repeated. "
        f"Kinds: {kinds}",
    )


def _open_any_tokenizer(folder: Path | None) -> Tokenizer | None:
    return open_tokenizer(folder) if folder else None


def _find_all(names: Sequence[str], setting: str) -> Listing:
    listings = [list_sources(fetch_data_names(name), setting=setting) for name in names]
    return Listing(
        sources=[source for listing in listings for source in listing.sources],
        unread=[entry for listing in listings for entry in listing.unread],
    )


def _check_output(output: Path, sources: Sequence[Source]) -> None:
    """Refuse a name that could not be read again, and to lose records that are not written."""
    if not is_written_file(output):
        raise DataError(
            f"{output} does not end like a file of JSON lines, which is what is written; end it in "
            ".jsonl, .jsonl.gz or .jsonl.zst"
        )
    if output.exists() and any(source.path.samefile(output) for source in sources):
        raise DataError(f"{output} is one of the files that are read; give another name to write")


def _settings(arguments: Arguments, policy: dict[str, str]) -> CompileSettings:
    for name in ("max_seq_length", "overlong"):
        value = vars(arguments)[name]
        if value is not None and arguments.tokenizer is None:
            raise DataError(
                f"{name} is {value}, and no tokenizer is given: a length is counted in tokens. Add "
                f"--tokenizer with the model's folder, or leave --{name} out"
            )
    return CompileSettings(
        max_seq_length=arguments.max_seq_length or DEFAULT_ROW,
        mode=arguments.mode,
        history=arguments.history,
        overlong=arguments.overlong or "error",
        now=arguments.now,
        policy=policy,
        records=_records(arguments),
    )


@dataclass(slots=True)
class FixedFile:
    """What --fix writes: the usable records, and beside them every change."""

    records: IO[str]
    changes: IO[str]
    num_records: int = 0
    num_changes: int = 0

    def write(self, chunk: InspectedChunk) -> None:
        """Add the records of a chunk, and what was changed or left out of it."""
        self.records.writelines(f"{record}\n" for record in chunk.records)
        changed = [one for one in chunk.findings if one.action != "note"]
        self.changes.writelines(f"{_as_json(finding)}\n" for finding in changed)
        self.num_changes += len(changed)
        self.num_records += len(chunk.records)

    def describe(self, path: Path, report: LintReport) -> str:
        """What was written where, and what is missing of it."""
        num_read = report.counts["records"]
        written = f"{self.num_records:,} of {num_read:,} records written to {path}"
        left_out = "; the others are left out" if self.num_records < num_read else ""
        return (
            f"{written}{left_out}. {_name_changes(path)} lists each change ({self.num_changes:,})"
        )


@contextmanager
def _open_fixed(path: Path | None) -> Iterator[FixedFile | None]:
    if path is None:
        yield None
        return
    with open_output(path) as records, open_output(_name_changes(path)) as changes:
        yield FixedFile(records, changes)


def _name_changes(path: Path) -> Path:
    return path.with_name(f"{path.name}.changes.jsonl")


def run_check(arguments: Arguments) -> int:
    """Lint; with --fix also write what can be fixed."""
    policy = choose_policy(arguments)
    _open_any_tokenizer(arguments.tokenizer)
    if arguments.fix:  # fix whatever can be fixed, unless told otherwise
        fixable = {kind: "fix" for kind, policy in POLICIES.items() if "fix" in policy.allowed}
        policy = fixable | policy
    listing = _find_all(arguments.files, "FILE")
    sources, unread = listing.sources, listing.unread
    if arguments.fix:
        _check_output(arguments.fix, sources)
    with _open_fixed(arguments.fix) as fixed:

        def write(chunk: InspectedChunk) -> None:
            if fixed:
                fixed.write(chunk)
            if arguments.json:
                for finding in chunk.findings:
                    say(_as_json(finding))

        if arguments.json:
            for finding in report_unread(unread, build_policies(policy)):
                say(_as_json(finding))
        report = lint_sources(
            sources,
            _settings(arguments, policy),
            LintOptions(
                tokenizer_folder=arguments.tokenizer,
                records="fixed" if arguments.fix else "none",
            ),
            eval_sources=_find_all(arguments.eval, "--eval").sources,
            unread=unread,
            num_workers=arguments.num_workers,
            on_chunk=write,
        )
    grammar = find_grammar(arguments.tokenizer)
    _print_report(report, grammar, is_json=arguments.json)
    if fixed:
        PlainConsole(stderr=True).print(fixed.describe(arguments.fix, report), soft_wrap=True)
    return 1 if report.num_errors else 0


def _print_report(report: LintReport, grammar: Grammar, *, is_json: bool) -> None:
    stats = summarise(report)
    if is_json:
        say(json.dumps({"summary": asdict(stats)}, ensure_ascii=False))
        return
    console = PlainConsole()
    print_findings(console, report.log)
    print_stats(console, stats)
    _print_question(report.log, grammar, console)
    verdict = f"{report.num_errors:,} error(s): training refuses this data"
    console.print(verdict if report.num_errors else "no errors", style="bold")


def _print_question(log: FindingLog, grammar: Grammar, console: PlainConsole) -> None:
    """Ask for the mode of records that state none, where they are refused for it."""
    if question := ask_for_mode(log.examples, log.counts["untagged", "error"], grammar):
        console.print(question, highlight=False, soft_wrap=True)


def _as_json(finding: Finding) -> str:
    return json.dumps(finding._asdict(), ensure_ascii=False)


def run_convert(arguments: Arguments) -> int:
    """Write the records of any form in the canonical one; what cannot be written is listed."""
    settings = CompileSettings(
        max_seq_length=1,  # not looked at: nothing is tokenized
        mode=arguments.mode,
        now=arguments.now,
        policy=UNTAUGHT | choose_policy(arguments),
        records=_records(arguments),
    )
    listing = _find_all([arguments.input], "IN")
    sources = listing.sources
    _check_output(arguments.output, sources)
    with open_output(arguments.output) as file:
        report = lint_sources(
            sources,
            settings,
            LintOptions(records="canonical"),
            unread=listing.unread,
            on_chunk=lambda chunk: file.writelines(f"{record}\n" for record in chunk.records),
        )
    console = PlainConsole(stderr=True)
    print_findings(console, report.log)
    console.print(f"{report.counts['used']:,} of {report.counts['records']:,} records written")
    return 1 if report.num_errors else 0


def run_show(arguments: Arguments) -> int:
    """Print one record in colours."""
    grammar = find_grammar(arguments.tokenizer)
    reading = Reading(grammar, records=_records(arguments), mode=arguments.mode, now=arguments.now)
    tokenizer = _open_any_tokenizer(arguments.tokenizer)
    if arguments.tokens and tokenizer is None:
        raise DataError(
            "--tokens needs --tokenizer DIR, a folder with hy.tiktoken or tokenizer.json"
        )
    console = PlainConsole()
    record, findings = _find_row(arguments, reading)
    for finding in findings:
        console.print(str(finding), soft_wrap=True)
    if record is None:
        return 1
    for side in record.sides or (Side(record.dialogue, 0),):
        if side.verdict:
            console.print("chosen" if side.verdict == CHOSEN else "rejected", style="bold")
        rendering = render_record(side.dialogue, grammar, history=arguments.history)
        for panel in show_samples(rendering, tokenizer, with_tokens=arguments.tokens):
            console.print(panel)
    console.print(write_legend())
    return 0


def _find_row(arguments: Arguments, reading: Reading) -> tuple[Record | None, list[Finding]]:
    num_rows = 0
    for num_rows, found in enumerate(read_rows(arguments, reading), 1):
        if num_rows == arguments.row:
            return found
    raise DataError(
        f"{arguments.file} has no row {arguments.row}; it has {num_rows:,}, and the first is 1"
    )


def run_stats(arguments: Arguments) -> int:
    """Print the numbers of some files and write them as a page."""
    listing = _find_all(arguments.files, "FILE")
    _open_any_tokenizer(arguments.tokenizer)
    report = lint_sources(
        listing.sources,
        _settings(arguments, choose_policy(arguments)),
        LintOptions(tokenizer_folder=arguments.tokenizer),
        unread=listing.unread,
        num_workers=arguments.num_workers,
    )
    stats = summarise(report)
    console = PlainConsole()
    print_stats(console, stats)
    _print_question(report.log, find_grammar(arguments.tokenizer), console)
    if arguments.html:
        with open_output(arguments.html) as file:
            file.write(write_page(stats, title=", ".join(arguments.files)))
        console.print(f"page written to {arguments.html}", markup=False)
    return 1 if report.num_errors else 0

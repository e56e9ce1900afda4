"""Mutated records and files: no crash, and none is lost without a line that says so."""

import copy
import gzip
import json
import random
import zlib
from itertools import product

import pytest
import zstandard

from hunyuan_train.data.compiled.compile import CompileSettings, compile_chunk
from hunyuan_train.data.inspection.lint import LintOptions, lint_sources
from hunyuan_train.data.reading.readers import Chunk, read_chunks
from hunyuan_train.data.reading.sources import find_sources
from tests.data.dialogues import HARD_PIECES, NOW, WEATHER, call, chat

SLOW = {"role": "assistant", "content": "d", "reasoning_content": "r"}
SEEDS = [
    chat("a", "b", system="S"),
    chat("a", "b", "c", "d", mode="fast"),
    {"mode": "slow", "messages": [*chat("a", "b", "c")["messages"], SLOW]},
    chat("/no_think a", "<think>\n\n</think>\n<answer>\nb\n</answer>"),
    chat("a", "<think>\nr\n</think>\n<answer>\nb\n</answer>", "c", "d"),
    {
        "tools": [WEATHER],
        "now": NOW,
        "messages": [
            {"role": "user", "content": "a"},
            call(),
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "b"},
        ],
    },
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {"prompt": "a", "completion": "b"},
    {"question": "a", "think": "b", "answer": "c"},
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": json.dumps([WEATHER]),
    },
]
ODD_VALUES = [
    None, True, 0, -1, 1.5, 10**30, "", " ", "x", [], {}, [None], [[]], {"x": 1}, [{"text": "y"}],
    [{"type": "image"}], "system", "assistant", "GPT", "fast", "slow", "<think>", "</answer>",
    "<think>\n\n</think>\n<answer>\nA\n</answer>", '[{"name": 1}]', "{", "a" * 1000, *HARD_PIECES,
]  # fmt: skip
ODD_KEYS = ["role", "content", "messages", "tools", "mode", "now", "train", "weight", "tool_calls"]


def _containers(value):
    """Every object and list inside a value, itself included."""
    found = [value] if isinstance(value, dict | list) else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found + [one for item in inner for one in _containers(item)]


def _mutate(record, rng):
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, 4)):
        container = rng.choice(_containers(record))
        odd = copy.deepcopy(rng.choice([*ODD_VALUES, *SEEDS]))
        if isinstance(container, dict):
            key = rng.choice([*container, *ODD_KEYS])
            if rng.random() < 0.3:
                container.pop(key, None)
            else:
                container[key] = odd
        elif container and rng.random() < 0.6:
            place = rng.randrange(len(container))
            action = rng.randrange(3)
            if action == 0:
                del container[place]
            elif action == 1:
                container[place] = odd
            else:
                container.append(copy.deepcopy(container[place]))
        else:
            container.append(odd)
    return record


def _check_accounts(findings, counts, lines):
    """Each record is used, or a finding on its line says why not."""
    refused = {one.line for one in findings if one.action in ("error", "drop")}
    assert counts["used"] + len(refused & set(lines)) >= counts["records"] == len(lines)
    assert counts["used"] <= len(lines)
    for finding in findings:
        assert finding.reason
        assert finding.fix


def _fuzz_records(number, tokenizer, seed):
    rng = random.Random(seed)
    records = [_mutate(rng.choice(SEEDS), rng) for _ in range(number)]
    lines = [json.dumps(record, ensure_ascii=rng.random() < 0.5) for record in records]
    chunk = Chunk("fuzz", list(range(1, number + 1)), [line.encode() for line in lines])
    settings = {"max_seq_length": 400, "overlong": "drop_turns"}
    # With the second policy more is read of a record that is refused for one odd key by the first.
    policies = ({}, {"unread_text": "note", "untagged": "note"})
    for history, policy in product(("strip", "keep"), policies):
        reading = CompileSettings(history=history, policy=policy, **settings)
        compiled = compile_chunk(chunk, reading, tokenizer)
        _check_accounts(compiled.findings, compiled.counts, chunk.lines)
        assert len(compiled.lines) == compiled.counts["used"]
        assert (compiled.encoded.samples["num_labels"] > 0).all()
        assert compiled.encoded.sample_lengths().max() <= 400
    return compiled.counts["used"]


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_mutated_records(tokenizer, seed):
    num_used = _fuzz_records(1000, tokenizer, seed)
    assert 50 < num_used < 950  # the mutations reach both sides


def _mutate_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        if not content:
            break
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.randint(0, 40))
        junk = bytes(rng.randrange(256) for _ in range(rng.randint(0, 8)))
        newline = rng.choice([b"\n", b"\r\n", b"\n\n", b"\x85", "\N{LINE SEPARATOR}".encode()])
        content[start:end] = rng.choice([junk, newline, b"", content[start:end] * 2])
    return bytes(content)


def _fuzz_file(path, rng):
    lines = "".join(f"{json.dumps(rng.choice(SEEDS), ensure_ascii=False)}\n" for _ in range(20))
    content = lines.encode()
    kind = rng.choice(["jsonl", "jsonl", "json", "gz", "zst"])
    if kind == "json":
        content = json.dumps([json.loads(line) for line in lines.splitlines()]).encode()
    if kind == "gz":
        content = gzip.compress(content)
    if kind == "zst":
        content = zstandard.compress(content)
    path = path.with_name(f"fuzz.jsonl.{kind}" if kind in ("gz", "zst") else f"fuzz.{kind}")
    content = _mutate_bytes(content, rng)
    path.write_bytes(content)
    return path, kind, content


def _expected_records(kind, content):
    """How many records a file holds as far as it can be read; None where it is broken."""
    if kind == "jsonl":
        return sum(bool(line.strip()) for line in content.split(b"\n"))
    try:
        if kind == "json":
            return len(json.loads(content.decode()))
        return 20 if kind == "zst" else len(gzip.decompress(content).splitlines())
    except (ValueError, OSError, EOFError, zlib.error):
        return None


def _fuzz_files(number, folder, tokenizer, seed):
    rng = random.Random(seed)
    options = LintOptions(tokenizer_folder=tokenizer.folder, records="canonical")
    settings = CompileSettings(max_seq_length=400, overlong="drop_turns")
    for _ in range(number):
        path, kind, content = _fuzz_file(folder / "fuzz", rng)
        findings, written = [], []

        def collect(chunk, findings=findings, written=written):
            findings += chunk.findings
            written += chunk.records

        report = lint_sources(
            find_sources(str(path)), settings, options, num_workers=1, on_chunk=collect
        )
        lines = [line for chunk in read_chunks(path) for line in chunk.lines]
        assert report.counts["records"] == len(lines)
        assert len(written) == report.counts["used"]
        if kind != "json":  # in an array several records may share a line
            _check_accounts(findings, report.counts, lines)
        is_broken = "broken_file" in report.log.by_kind()
        assert is_broken or len(lines) == _expected_records(kind, content)
        path.unlink()


@pytest.mark.parametrize("seed", range(10))
def test_twenty_mutated_files(tmp_path, tokenizer, seed):
    _fuzz_files(20, tmp_path, tokenizer, seed)

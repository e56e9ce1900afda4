import argparse
import json
import shutil

import pytest

from hunyuan_train.data.commands import add_data_commands
from hunyuan_train.errors import ConfigError, DataError
from tests.data.dialogues import NOW, WEATHER, call, chat


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a data command; its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def start(*words):
        parser = argparse.ArgumentParser()
        add_data_commands(parser.add_subparsers(required=True))
        arguments = parser.parse_args([str(word) for word in words])
        code = arguments.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


@pytest.fixture
def mixed(write_records):
    """Good, fixable and hopeless records."""
    return write_records(
        [
            chat("a", "b", mode="fast"),
            chat("c", "<think>r</think>d"),
            chat("e", "f", "g", mode="plain"),
            chat("h", ""),
            chat("a", "b", mode="fast"),
            {"prompt": "i <|eos|>", "completion": "j", "mode": "plain"},
            {
                "conversations": [{"from": "human", "value": "k"}, {"from": "gpt", "value": "l"}],
                "mode": "plain",
            },
        ]
    )


def _json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_check_lists_what_it_finds_and_fails_on_errors(run, mixed):
    code, output, _ = run("check", mixed)
    assert code == 1
    assert f"{mixed}:4: error [empty_answer] messages[1].content: an answer without text" in output
    assert f"{mixed}:2: fixed [tags]" in output
    assert "1 error(s): training refuses this data" in output


def test_check_names_every_field_that_is_not_read_and_how_often(run, write_records):
    records = [{**chat(f"q{n}", "a", mode="fast"), "source": "s", "[b]_id": 1} for n in range(3)]
    records[0]["messages"][0]["name"] = "Ann"
    code, output, _ = run("check", write_records(records))
    assert code == 0
    assert "source 3, [b]_id 3, messages[].name 1" in " ".join(output.split())


def test_check_refuses_a_text_that_is_not_read_unless_told_to_train_without_it(run, write_records):
    path = write_records([{**chat("q", "a", mode="fast"), "solution": "b"}])
    code, output, _ = run("check", path)
    assert code == 1
    assert f"{path}:1: error [unread_text] solution: a field that training does not read" in output
    assert run("check", path, "--policy", "unread_text=note")[0] == 0


def test_a_refusal_names_the_policy_that_fixes_it(run, write_records):
    path = write_records([{"messages": [*chat("a")["messages"], *chat("b", "c")["messages"]]}])
    output = run("check", path)[1]
    assert "fix it, or choose repeated_role=fix: joined by an empty line" in output


def test_check_of_good_data_succeeds(run, tiny_data, tokenizer):
    code, output, _ = run("check", tiny_data, "--tokenizer", tokenizer.folder)
    assert code == 0
    assert "no errors" in output
    assert "times one sample per dialogue" in output


def test_check_as_json_gives_each_finding_and_a_summary(run, mixed, tokenizer):
    code, output, _ = run("check", mixed, "--json", "--tokenizer", tokenizer.folder)
    *findings, last = _json_lines(output)
    assert code == 1
    assert {"path", "line", "kind", "action", "field", "reason", "fix"} == set(findings[0])
    assert {(one["line"], one["kind"]) for one in findings} >= {
        (2, "tags"),
        (3, "trailing_user"),
        (4, "empty_answer"),
        (5, "duplicate"),
        (6, "converted"),
        (6, "special_tokens"),
    }
    summary = last["summary"]
    assert (summary["num_records"], summary["num_used"], summary["num_refused"]) == (7, 6, 1)
    assert summary["modes"] == {"plain": 3, "fast": 2, "slow": 1}
    assert summary["forms"] == {"messages": 4, "prompt/completion": 1, "ShareGPT": 1}
    assert summary["tokens"]["num_samples"] == 6
    assert sum(number for _, number in summary["tokens"]["bins"]) == 6
    assert summary["advice"]


def test_what_is_left_out_is_not_said_to_be_read(run, write_records):
    path = write_records([chat("a", [{"type": "text", "text": "b"}], mode="plain")])
    _, output, _ = run("check", path, "--policy", "content_type=drop")
    assert "left out [content_type]" in output
    assert "to keep it choose content_type=fix: " in output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://x.y/a.jsonl", "FILE is https://x.y/a.jsonl, an address on the web; download it"),
        ("no/*.jsonl", "patterns are not expanded: give the folder"),
    ],
)
def test_an_address_and_a_pattern_are_told_from_a_missing_file(run, name, message):
    with pytest.raises(DataError, match=message):
        run("check", name)


def test_check_takes_a_policy_for_each_kind(run, mixed):
    assert run("check", mixed, "--policy", "empty_answer=drop")[0] == 0
    assert run("check", mixed, "--policy", "tags=error", "--policy", "empty_answer=drop")[0] == 1
    assert run("check", mixed, "--policy", "tags=error,empty_answer=drop")[0] == 1
    for words, message in (
        ("tags", "takes kind=action"),
        ("tag=error", "names the kind 'tag'; did you mean tags"),
        ("tags=error,tags=drop", "sets tags to error and drop"),
        ("tags=note", "choose error or drop or fix"),
    ):
        with pytest.raises(DataError, match=message):
            run("check", mixed, "--policy", words)


def test_check_finds_long_samples_only_with_a_tokenizer(run, write_records, tokenizer):
    path = write_records([chat("a", "word " * 200, mode="plain")])
    for flags in (["--max_seq_length", 64], ["--overlong", "drop"]):
        with pytest.raises(DataError, match="no tokenizer is given: a length is counted in tokens"):
            run("check", path, *flags)
    assert run("check", path)[0] == 0
    with_tokenizer = ("check", path, "--max_seq_length", 64, "--tokenizer", tokenizer.folder)
    assert run(*with_tokenizer)[0] == 1
    assert run(*with_tokenizer, "--overlong", "drop")[0] == 0


def test_samples_that_are_too_long_are_in_the_lengths_and_in_no_row(
    run, write_records, tokenizer, tmp_path
):
    path = write_records([chat("a", "b", mode="plain"), chat("c", "word " * 200, mode="plain")])
    words = (path, "--tokenizer", tokenizer.folder, "--max_seq_length", 64)
    tokens = _json_lines(run("check", *words, "--json")[1])[-1]["summary"]["tokens"]
    assert (tokens["num_samples"], tokens["num_overlong"], tokens["num_rows"]) == (1, 1, 1)
    assert tokens["longest"] > 200
    assert sum(number for _, number in tokens["bins"]) == 2
    run("stats", *words, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('"bar beyond" style="width: 100.0%"') == 1


def test_check_finds_questions_of_the_evaluation_set(run, write_records):
    records = [chat("a", "b", mode="fast"), chat("c", "d", mode="fast")]
    train = write_records(records, "train.jsonl")
    held_out = write_records([chat("c", "another answer")], "eval.jsonl")
    code, output, _ = run("check", train, "--eval", held_out, "--json")
    overlaps = [one for one in _json_lines(output)[:-1] if one["kind"] == "eval_overlap"]
    assert code == 0
    assert [one["line"] for one in overlaps] == [2]
    words = ("check", train, "--eval", held_out, "--policy", "eval_overlap=error")
    assert run(*words)[0] == 1


def test_fix_writes_what_can_be_fixed_and_a_report_of_the_rest(run, mixed, tmp_path):
    out = tmp_path / "fixed.jsonl"
    code, _, said = run("check", mixed, "--fix", out, "--policy", "duplicate=drop")
    assert code == 1  # one record cannot be fixed
    assert f"5 of 7 records written to {out}; the others are left out. {out}.changes" in said
    fixed = _json_lines(out.read_text())
    changes = _json_lines((tmp_path / "fixed.jsonl.changes.jsonl").read_text())
    lost = {one["line"] for one in changes if one["action"] in ("error", "drop")}
    assert len(fixed) + len(lost) == 7
    assert {one["line"] for one in changes if one["action"] == "fix"} == {2, 3}
    assert run("check", out)[0] == 0
    *findings, _ = _json_lines(run("check", out, "--json")[1])
    assert {one["kind"] for one in findings} <= {"untagged", "special_tokens", "converted"}


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_a_fixed_file_is_read_alike_without_the_mode_that_it_was_fixed_with(
    run, write_records, tmp_path, mode
):
    alpaca = {"instruction": "i", "input": "", "output": "o"}
    tagged = chat("a", "<think>\n\n</think>\n<answer>\nb\n</answer>")
    path = write_records([chat("a", "b"), alpaca, *([tagged] if mode == "fast" else [])])
    out = tmp_path / "out.jsonl"
    assert run("check", path, "--mode", mode, "--fix", out)[0] == 0
    fixed = _json_lines(out.read_text())
    assert [record["mode"] for record in fixed[:2]] == [mode, mode]
    code, output, _ = run("check", out)
    assert code == 0, output


def test_check_says_how_many_it_does_not_list_and_where_noted_ones_are(run, write_records):
    records = [chat(f"q{n}", "", mode="plain") for n in range(23)]
    records += [chat("a", "b", mode="plain")] * 6
    path = write_records(records)
    _, output, _ = run("check", path)
    assert (
        output.count("error [empty_answer]") == 21
    )  # twenty, and the line that says how many more
    assert "and more: 3 error [empty_answer], 2 noted [duplicate]" in output
    assert "`hunyuan-train data check --json` lists every one" in output
    assert f"{path}:25: noted [duplicate]" in output


def test_fix_leaves_what_is_sound_as_it_is_and_keeps_ids_in_what_it_mends(
    run, write_records, tmp_path
):
    calls = [{"id": "c1", "type": "function", "function": {"name": "get_weather"}}]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    sound = {"tools": [WEATHER], "mode": "plain", "messages": turns}
    late = {"tools": [WEATHER], "now": NOW, "mode": "plain", "messages": [*turns, turns[0]]}
    path = write_records([sound, {"prompt": "c", "completion": "d", "mode": "fast"}, late])
    assert run("check", path, "--fix", tmp_path / "out.jsonl")[0] == 0
    *kept, fixed = _json_lines((tmp_path / "out.jsonl").read_text())
    assert kept == [sound, {"prompt": "c", "completion": "d", "mode": "fast"}]
    assert fixed["messages"][1]["tool_calls"][0]["id"] == "c1"
    assert fixed["messages"][2] == turns[2]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([sound], indent=1))
    assert run("check", array, "--fix", tmp_path / "out.jsonl")[0] == 0
    assert _json_lines((tmp_path / "out.jsonl").read_text()) == [sound]


def test_pairs_are_converted_and_fixed_as_pairs(run, write_records, tmp_path):
    chosen, rejected = {"from": "gpt", "value": "yes"}, {"from": "gpt", "value": "no"}
    turns = [{"from": "human", "value": "Q"}]
    pair = {"conversations": turns, "chosen": chosen, "rejected": rejected, "mode": "fast"}
    broken = {"mode": "fast", "prompt": "e\u0301?", "chosen": "a", "rejected": "b"}
    path, out = write_records([pair, broken]), tmp_path / "out.jsonl"
    asked = ("--objective", "dpo")
    assert run("convert", path, out, *asked)[0] == 0
    first, second = _json_lines(out.read_text())
    question, answers = {"role": "user", "content": "Q"}, ("yes", "no")
    said = [[{"role": "assistant", "content": text}] for text in answers]
    wanted = {"mode": "fast", "prompt": [question], "chosen": said[0], "rejected": said[1]}
    assert first == wanted
    assert second["prompt"][0]["content"] == "\u00e9?"
    assert run("check", out, *asked)[0] == 0
    assert run("check", path, *asked, "--fix", out)[0] == 0
    assert _json_lines(out.read_text()) == [pair, second]


def test_a_file_is_not_written_over_while_it_is_read(run, mixed):
    before = mixed.read_text()
    with pytest.raises(DataError, match="is one of the files that are read"):
        run("check", mixed, "--fix", mixed)
    with pytest.raises(DataError, match="is one of the files that are read"):
        run("convert", mixed, mixed)
    assert mixed.read_text() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.jsonl", "cannot be written .No such file or directory.; give a file in a"),
        ("folder.jsonl", "folder.jsonl is no ordinary file"),
        ("out.parquet", "does not end like a file of JSON lines"),
        ("out", "does not end like a file of JSON lines"),
    ],
)
def test_a_place_that_cannot_be_written_or_read_again_is_refused(
    run, mixed, tmp_path, name, message
):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=message):
        run("check", mixed, "--fix", tmp_path / name)
    with pytest.raises(DataError, match=message):
        run("convert", mixed, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "folder.jsonl"]


def test_stats_does_not_replace_a_device_by_its_page(run, mixed):
    with pytest.raises(DataError, match="/dev/null is no ordinary file"):
        run("stats", mixed, "--html", "/dev/null")


@pytest.mark.parametrize(
    "words",
    [("show", "--row", "0"), ("stats", "--max_seq_length", "0"), ("check", "--num_workers", "-2")],
)
def test_a_number_that_means_nothing_is_refused(run, mixed, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        run(*words, mixed)
    assert f"argument {words[1]}: " in capsys.readouterr().err


def test_fix_fixes_also_what_is_an_error_by_default(run, write_records, tmp_path):
    tagged = "<think>\n\n</think>\n<answer>\nb\n</answer>"
    two = {"mode": "plain", "messages": [*chat("a")["messages"], *chat("b", "c")["messages"]]}
    path = write_records([chat("a", tagged), two])
    assert run("check", path)[0] == 1
    assert run("check", path, "--fix", tmp_path / "out.jsonl")[0] == 0
    assert _json_lines((tmp_path / "out.jsonl").read_text()) == [
        chat("a", "b", mode="fast"),
        chat("a\n\nb", "c", mode="plain"),
    ]


def test_convert_writes_canonical_records_and_says_what_it_left_out(run, mixed, tmp_path):
    out = tmp_path / "out.jsonl"
    code, _, said = run("convert", mixed, out)
    assert code == 1
    assert "6 of 7 records written" in said
    assert "empty_answer" in said
    assert _json_lines(out.read_text())[-1] == chat("k", "l", mode="plain")
    assert run("convert", out, tmp_path / "again.jsonl.gz")[0] == 0


def test_show_prints_samples_with_their_tokens(run, tiny_data, tokenizer):
    code, output, _ = run("show", tiny_data, "--row", 6, "--tokenizer", tokenizer.folder)
    assert code == 0
    assert "sample 2 of 2, slow" in output
    assert "with loss" in output
    _, output, _ = run("show", tiny_data, "--row", 1, "--tokenizer", tokenizer.folder, "--tokens")
    assert "<|startoftext|>\N{LEFT ONE EIGHTH BLOCK}" in output
    with pytest.raises(DataError, match="has no row 9999; it has 260, and the first is 1"):
        run("show", tiny_data, "--row", 9999)
    with pytest.raises(DataError, match="--tokens needs --tokenizer"):
        run("show", tiny_data, "--tokens")


def test_show_of_a_refused_record_says_why(run, mixed):
    code, output, _ = run("show", mixed, "--row", 4)
    assert code == 1
    assert "an answer without text" in output


def test_a_record_is_shown_by_the_number_of_its_error(run, mixed):
    _, output, _ = run("check", mixed)
    assert f"{mixed}:4: error [empty_answer]" in output
    assert f"{mixed}:4: messages[1].content: an answer" in run("show", mixed, "--row", 4)[1]


def test_stats_writes_a_page_that_needs_nothing_else(run, tiny_data, tokenizer, tmp_path):
    page = tmp_path / "page.html"
    code, output, _ = run("stats", tiny_data, "--tokenizer", tokenizer.folder, "--html", page)
    assert code == 0
    assert "packed" in output
    text = page.read_text()
    assert 'class="bar"' in text
    assert 'name="viewport"' in text
    assert "http" not in text
    assert "<script" not in text
    assert "Tokens per sample" in text
    assert "<span>99% to 100%</span>" in text


def test_stats_writes_no_page_that_nobody_asked_for(run, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, _ = run("stats", tiny_data)
    assert code == 0
    assert "page" not in output
    assert not list(tmp_path.iterdir())


def test_stats_page_escapes_what_files_hold(run, write_records, tmp_path):
    path = write_records([chat("a", "b")], "<b>.jsonl")
    run("stats", path, "--html", tmp_path / "page.html")
    assert "<b>.jsonl" not in (tmp_path / "page.html").read_text()


def test_encode_prints_row_ids_and_mask_of_each_sample(run, write_records, tokenizer):
    path = write_records([chat("a", "b", "c", "d", mode="fast"), chat("e", "f")])
    code, output, _ = run("encode", path, "--tokenizer", tokenizer.folder, "--json")
    lines = _json_lines(output)
    assert code == 0
    assert [line["row"] for line in lines] == [0, 0, 1]
    assert {frozenset(line) for line in lines} == {frozenset({"row", "input_ids", "loss_mask"})}
    learned = [i for i, m in zip(lines[2]["input_ids"], lines[2]["loss_mask"], strict=True) if m]
    assert tokenizer.decode(learned) == "f<|eos|>"
    code, output, _ = run(
        "encode", path, "--tokenizer", tokenizer.folder, "--history", "keep", "--json"
    )
    assert [line["row"] for line in _json_lines(output)] == [0, 1]


def test_encode_takes_prompts_and_records_as_they_are_written(run, write_records, tokenizer):
    tools = {"tools": [WEATHER], "messages": [*chat("a")["messages"], call()]}
    path = write_records([chat("a"), chat("b", "<think>\nr.</think>\n<answer>\nc"), tools])
    code, output, _ = run(
        "encode", path, "--tokenizer", tokenizer.folder, "--history", "keep", "--json",
        "--now", NOW,
    )  # fmt: skip
    texts = [tokenizer.decode(line["input_ids"]) for line in _json_lines(output)]
    assert code == 0
    assert texts[0] == "<|startoftext|>a<|extra_0|>"
    assert texts[1].endswith("<think>\nr.</think>\n<answer>\nc<|eos|>")
    assert f"{NOW} 星期一" in texts[2]
    assert sum(_json_lines(output)[0]["loss_mask"]) == 0


def test_encode_writes_tools_and_calls_that_a_server_would_refuse_as_they_are(
    run, write_records, tokenizer
):
    message = call("</tool_calls>")
    tools = [{"name": "get_weather", "description": "bare"}]
    path = write_records([{"tools": tools, "messages": [*chat("a")["messages"], message]}])
    words = ("encode", path, "--tokenizer", tokenizer.folder, "--json", "--now", NOW)
    assert run(*words)[0] == 1
    code, output, _ = run(*words, "--history", "keep")
    text = tokenizer.decode(_json_lines(output)[0]["input_ids"])
    assert code == 0
    assert '[{"name": "get_weather", "description": "bare"}]' in text
    assert '[{"name": "get_weather", "arguments": {"city": "</tool_calls>"}}]' in text


def test_loss_on_the_last_answer_only_leaves_one_sample_also_under_strip(
    run, write_records, tokenizer
):
    path = write_records([chat("a", "b", "c", "d", mode="fast"), chat("a", "b", "c", "d")])
    words = ("encode", path, "--tokenizer", tokenizer.folder, "--json", "--loss", "last")
    lines = _json_lines(run(*words)[1])
    assert [line["row"] for line in lines] == [0, 1]
    for line in lines:
        pairs = zip(line["input_ids"], line["loss_mask"], strict=True)
        learned = tokenizer.decode([token for token, has_loss in pairs if has_loss])
        assert learned.endswith(("\nd\n</answer><|eos|>", "d<|eos|>"))
        assert learned.count("<|eos|>") == 1


def test_encode_applies_a_stated_mode_also_when_history_is_kept(run, write_records, tokenizer):
    path = write_records([chat("a", "b", mode="fast")])
    words = ("encode", path, "--tokenizer", tokenizer.folder, "--history", "keep", "--json")
    [line] = _json_lines(run(*words)[1])
    assert tokenizer.decode(line["input_ids"]).startswith("<|startoftext|>/no_think a")


UNTAGGED = [chat("2+2?", "4\x1b[31m"), chat("Q", "A"), chat("Q", "A", mode="fast")]


@pytest.mark.parametrize("command", ["check", "stats"])
def test_untagged_records_are_asked_about_with_one_of_them_in_every_mode(
    run, write_records, tmp_path, command
):
    path = write_records(UNTAGGED)
    page = ["--html", tmp_path / "page.html"] if command == "stats" else []
    code, output, _ = run(command, path, *page)
    assert code == 1
    assert "2 record(s) state no mode" in output
    assert f"{path}:1 in each mode" in output
    assert "--mode fast" in output
    assert "/no_think 2+2?<|extra_0|>[[<think>\\n\\n</think>\\n<answer>\\n4\\u001b[31m" in output
    assert "--mode slow" in output
    assert "--mode plain" in output
    assert "<|startoftext|>2+2?<|extra_0|>[[4\\u001b[31m<|eos|>]]" in output
    assert "\x1b[31m" not in output
    for mode in ("fast", "plain"):
        assert run(command, path, *page, "--mode", mode)[0] == 0
    assert "state no mode" not in run(command, path, *page, "--mode", "slow")[1]


def test_the_question_says_which_of_several_samples_it_shows(run, write_records):
    output = run("check", write_records([chat("a", "b", "c", "d")]))[1]
    shown = [line for line in output.splitlines() if "<|startoftext|>" in line]
    fast, slow, plain = (line.strip().partition("<|startoftext|>")[0] for line in shown)
    assert (fast, slow) == ("(the last of 2 samples) ", "(the last of 2 samples) ")
    assert plain == ""


def test_check_leaves_untagged_records_out_or_teaches_them_where_told_to(run, write_records):
    path = write_records(UNTAGGED)
    for policy in ("untagged=note", "untagged=drop"):
        assert run("check", path, "--policy", policy)[0] == 0


def test_conversion_keeps_untagged_records_and_a_stated_plain_mode(run, write_records, tmp_path):
    path = write_records(UNTAGGED)
    out = tmp_path / "out.jsonl"
    assert run("convert", path, out)[0] == 0
    assert ["mode" in record for record in _json_lines(out.read_text())] == [False, False, True]
    assert run("convert", path, out, "--mode", "plain")[0] == 0
    assert [record["mode"] for record in _json_lines(out.read_text())] == ["plain", "plain", "fast"]
    assert run("check", out)[0] == 0


def test_render_prints_the_text_that_encode_encodes(run, tiny_data, tokenizer):
    words = (tiny_data, "--tokenizer", tokenizer.folder, "--json")
    texts = {}
    for line in _json_lines(run("encode", *words)[1]):
        texts[line["row"]] = tokenizer.decode(line["input_ids"])  # the last sample of each row
    code, output, _ = run("render", *words)
    assert code == 0
    assert {line["row"]: line["text"] for line in _json_lines(output)} == texts


def test_render_of_a_generation_prompt_is_what_a_server_sends(run, write_records, tokenizer):
    turns = chat("a", "<think>\nr\n</think>\n<answer>\nb\n</answer>", "c", "d", system="S")
    path = write_records([{**turns, "mode": "slow"}, chat("a", "b", "c"), chat("a", mode="fast")])
    words = ("render", path, "--tokenizer", tokenizer.folder, "--generation_prompt", "--json")
    code, output, said = run(*words)
    start, end = "<|startoftext|>", "<|extra_0|>"
    assert (code, said) == (0, "")
    assert [line["text"] for line in _json_lines(output)] == [
        f"{start}S<|extra_4|>a{end}b<|eos|>{start}c{end}",
        f"{start}a{end}b<|eos|>{start}c{end}",
        f"{start}/no_think a{end}",
    ]


def test_render_sends_nothing_to_a_terminal_that_it_would_obey(run, write_records, tokenizer):
    path = write_records(
        [chat("a\x1b[2J\x9b1m\u202e", "line 1\nline 2", mode="plain"), {"x\x1b": 1}]
    )
    for words in ((), ("--json",)):
        code, output, said = run("render", path, "--tokenizer", tokenizer.folder, *words)
        assert code == 1
        assert not set("\x1b\x9b\u202e") & set(output + said)
    assert json.loads(output)["text"].startswith("<|startoftext|>a\x1b[2J\x9b1m\u202e<|extra_0|>")


def test_render_shows_untagged_records_and_says_so(run, write_records, tokenizer):
    path = write_records([chat("a", "b")])
    code, output, said = run("render", path, "--tokenizer", tokenizer.folder, "--json")
    assert code == 0
    assert _json_lines(output) == [{"row": 0, "text": "<|startoftext|>a<|extra_0|>b<|eos|>"}]
    assert "1 record(s) state no mode" in said


def test_encode_of_the_golden_vectors(run, golden, vendor_tokenizer):
    path = golden / "thinking_public.jsonl"
    vectors = _json_lines(path.read_text())
    words = ("encode", path, "--tokenizer", vendor_tokenizer.folder, "--history", "keep", "--json")
    for loss, key in (("all", "loss_mask"), ("last", "loss_mask_last_turn")):
        code, output, _ = run(*words, "--loss", loss, "--now", "2025-06-26 16:21:57")
        assert code == 0
        for line, vector in zip(_json_lines(output), vectors, strict=True):
            expected = {"input_ids": vector["input_ids"], "loss_mask": vector[key]}
            assert line == {"row": line["row"], **expected}


def test_encode_reports_refused_records_and_goes_on(run, mixed, tokenizer):
    code, output, said = run("encode", mixed, "--tokenizer", tokenizer.folder, "--json")
    assert code == 1
    assert [line["row"] for line in _json_lines(output)] == [0, 1, 2, 4, 5, 6]
    assert f"{mixed}:4" in said


def test_a_file_that_cannot_be_read_is_an_error_of_show_and_encode(run, tmp_path, tokenizer):
    path = tmp_path / "a.json"
    path.write_text('[{"messages": ')
    with pytest.raises(DataError, match="unreadable after this line"):
        run("encode", path, "--tokenizer", tokenizer.folder)


def test_every_command_that_reads_records_takes_the_policy_that_it_asks_for(
    run, write_records, tokenizer
):
    path = write_records([chat("a", "t\n</think>\n<answer>\nb\n</answer>")])
    fix = ("--policy", "unopened_think=fix")
    for command in ("check", "show", "stats", "render", "encode"):
        words = (command, path, "--tokenizer", tokenizer.folder)
        assert run(*words)[0] == 1
        assert run(*words, *fix)[0] == 0
        with pytest.raises(DataError, match="did you mean tags"):
            run(*words, "--policy", "tag=fix")
    assert "<think>\nt\n</think>" in run("render", path, *words[2:], *fix)[1]


@pytest.mark.parametrize("command", ["check", "show", "stats", "render", "encode"])
def test_what_a_tokenizer_folder_has_and_training_does_not_read_is_told(
    run, tiny_data, tokenizer, tmp_path, command
):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer.folder, folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "added_tokens.json").write_text(json.dumps({"<|mine|>": 999}))
    words = (command, tiny_data, "--tokenizer", folder)
    said = run(*words)[2]
    assert "the chat template in" in said
    assert "adds 1 token(s) to the vocabulary (<|mine|>)" in said
    (folder / "config.json").write_text("{}")
    assert "the tokenizer is not compared with config.json: " in run(*words)[2]


@pytest.mark.parametrize(("command", "num_lines"), [("check", 100), ("encode", 1)])
def test_a_rank_file_that_was_cut_is_refused_by_the_config_beside_it(
    run, tiny_data, vendor_tokenizer, tmp_path, command, num_lines
):
    lines = (vendor_tokenizer.folder / "hy.tiktoken").read_bytes().splitlines(keepends=True)
    (tmp_path / "hy.tiktoken").write_bytes(b"".join(lines[:-num_lines]))
    shutil.copy(vendor_tokenizer.folder / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="so its ids are shifted; copy the folder"):
        run(command, tiny_data, "--tokenizer", tmp_path)

"""Talking to a model that knows three dialogues by heart: scripts, terminals, adapters."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from hunyuan_train import cli
from hunyuan_train.data.rendering.prompt import encode_prompt
from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import Delta
from hunyuan_train.families.grammar.hunyuan_a13b.tags import ANSWER_CLOSE, THINK_CLOSE, THINK_OPEN
from hunyuan_train.serve import talk
from hunyuan_train.serve.chat import Dialogue, TerminalView, answer
from hunyuan_train.serve.generate import Sampling, ServedModel, load_model
from tests.taught import FAST, SLOW, TOOLS, write_taught_model

GREEDY = Sampling(max_new_tokens=80, temperature=0)
PTY_TIMEOUT_SECONDS = 600  # beside a full load; torch alone takes minutes then


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def served(folder: Path) -> ServedModel:
    return load_model(folder)


def test_a_script_gets_the_served_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["chat", str(folder), "--prompt", "Two cats?", "--max_new_tokens", "80", "--json"]
    assert cli.main(asked) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("usage") == {"prompt_tokens": 7, "completion_tokens": 27}
    assert printed == {
        "role": "assistant",
        "reasoning_content": SLOW["messages"][1]["reasoning_content"],
        "content": "Eight 腿.",
        "tool_calls": [],
        "finish_reason": "stop",
    }
    assert cli.main([*asked, "--no_think"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["reasoning_content"], printed["content"]) == (None, "Cats.")


def test_without_json_a_script_gets_the_content_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Two cats?"))
    assert cli.main(["chat", str(folder), "--prompt", "-"]) == 0
    assert capsys.readouterr().out == "Eight 腿.\n"
    assert cli.main(["chat", str(folder), "--prompt", "Two cats?", "--max_new_tokens", "4"]) == 0
    assert "--max_new_tokens" in capsys.readouterr().err


def test_what_is_shown_while_it_comes_is_the_answer(served: ServedModel) -> None:
    prompt = encode_prompt(SLOW["messages"][:1], served.tokenizer)
    deltas: list[Delta] = []
    reply = answer(served, prompt, GREEDY, deltas.append, has_tools=False)
    for field in ("reasoning_content", "content"):
        shown = "".join(delta.text for delta in deltas if delta.field == field)
        assert shown == reply.parsed.to_message()[field]
    assert len(deltas) > 8
    plain = served.model.generate(torch.tensor([prompt]), max_new_tokens=80, do_sample=False)
    text = served.tokenizer.decode(plain[0, len(prompt) : -1].tolist())
    thoughts = SLOW["messages"][1]["reasoning_content"]
    assert text == f"{THINK_OPEN}{thoughts}{THINK_CLOSE}Eight 腿.{ANSWER_CLOSE}"


def test_a_dialogue_goes_on_from_bare_answers(served: ServedModel) -> None:
    dialogue = Dialogue(served, GREEDY)
    dialogue.ask("Two cats?", is_fast=True)
    reply = dialogue.ask("And?", is_fast=True)
    assert reply.parsed.content == "More cats."
    contents = [message["content"] for message in dialogue.messages]
    assert contents == ["/no_think Two cats?", "Cats.", "/no_think And?", "More cats."]
    whole = encode_prompt(FAST["messages"][:3], served.tokenizer, mode="fast")
    assert reply.num_prompt_tokens == len(whole)


def test_called_tools_hand_back_their_results(served: ServedModel) -> None:
    dialogue = Dialogue(served, GREEDY, tools=TOOLS, now="2026-03-02 09:15:00")
    reply = dialogue.ask("Count.", is_fast=True)
    assert reply.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in reply.parsed.tool_calls] == [
        ("count", {"of": "cats"})
    ]
    assert dialogue.give_results(["7"]).parsed.content == "Seven."


def test_ctrl_c_leaves_the_answer_and_keeps_what_was_said(served: ServedModel) -> None:
    shown = []

    def interrupt(delta: Delta) -> None:
        shown.append(delta)
        if delta.field == "content":
            raise KeyboardInterrupt

    dialogue = Dialogue(served, GREEDY)
    reply = dialogue.ask("Two cats?", is_fast=False, show=interrupt)
    assert reply.finish_reason == "interrupted"
    assert reply.parsed.reasoning_content == SLOW["messages"][1]["reasoning_content"]
    assert dialogue.messages[-1]["content"] == reply.parsed.content


def test_a_dialogue_goes_on_after_an_answer_cut_off_in_its_thoughts(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Delta) -> None:
        raise KeyboardInterrupt

    dialogue = Dialogue(served, GREEDY)
    dialogue.ask("Two cats?", is_fast=True)
    said = dialogue.messages
    reply = dialogue.ask("And?", is_fast=False, show=interrupt)
    assert (reply.finish_reason, reply.is_kept) == ("interrupted", False)
    assert dialogue.messages == said
    assert dialogue.ask("And?", is_fast=True).parsed.content == "More cats."
    lines = iter(["Two cats?", "/no_think", "Two cats?"])
    monkeypatch.setattr(talk, "_read_line", lambda *_: next(lines, None))
    screen = io.StringIO()
    short = Dialogue(served, Sampling(max_new_tokens=6, temperature=0))
    arguments = Namespace(no_think=False, show_thinking=False)
    talk.talk(short, arguments, Console(file=screen, width=120))
    assert "goes on without this question and its unfinished answer" in screen.getvalue()
    assert "raise --max_new_tokens" in screen.getvalue()


def test_a_question_whose_results_got_no_answer_is_dropped_whole(served: ServedModel) -> None:
    dialogue = Dialogue(served, GREEDY, tools=TOOLS, now="2026-03-02 09:15:00")
    dialogue.ask("Count.", is_fast=True)
    dialogue.sampling = Sampling(max_new_tokens=1, temperature=0)
    assert not dialogue.give_results(["7"]).is_kept
    assert dialogue.messages == []


def test_thoughts_are_dim_and_folded_to_one_line() -> None:
    for is_unfolded in (False, True):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=80, color_system="standard")
        with TerminalView(console, is_unfolded=is_unfolded) as view:
            for field, text in (("reasoning_content", "why "), ("content", "[b]so[/b]")):
                view.show(Delta(field, text))
        assert "\x1b[2mwhy" in screen.getvalue()
        assert ("thought for 0 s, 1 words" in screen.getvalue()) != is_unfolded
        assert "[b]so[/b]" in screen.getvalue()


def test_the_terminal_switches_modes_and_forgets(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["Two cats?", "/think", "/new", "/no_think", "Two cats?", "/no_think", ""])
    prompts = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    screen = io.StringIO()
    arguments = Namespace(no_think=False, show_thinking=False)
    dialogue = Dialogue(served, GREEDY)
    talk.talk(dialogue, arguments, Console(file=screen, width=80))
    assert prompts == ["> "] * 4 + ["fast> "] * 2 + ["> "] * 2
    assert screen.getvalue().count("4 legs each.") == 1  # only where /think asked for it
    assert [one["content"] for one in dialogue.messages] == ["/no_think Two cats?", "Cats."]


def test_an_adapter_answers_on_its_base(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    described = json.loads((adapter / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    assert cli.main(["chat", str(adapter), "--prompt", "Two cats?"]) == 2
    assert "--base" in capsys.readouterr().err
    served = load_model(adapter, base=moved)
    ids = torch.tensor([encode_prompt(SLOW["messages"][:1], served.tokenizer)])
    with torch.no_grad():
        difference = served.model(ids).logits - adapted.eval()(ids).logits
    assert float(difference.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["nowhere"], "neither config.json nor adapter_config.json"),
        (["nowhere", "--json"], "give its question with --prompt"),
        (["nowhere", "--prompt", "a", "--max_new_tokens", "0"], "set it to 1 or more"),
        (["nowhere", "--prompt", "a", "--tools", "none.json"], "cannot be read as JSON"),
        (["nowhere", "--temperature", "-1"], "temperature is -1.0; set it to 0 or more"),
        (["nowhere", "--top_p", "3"], "top_p is 3.0; set it to a number from 0 to 1"),
        (["nowhere", "--top_k", "-5"], "top_k is -5; set it to 0 or more"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", *arguments]) == 2
    assert remedy in capsys.readouterr().err


def test_in_a_real_terminal_ctrl_c_ends_an_answer_and_ctrl_d_the_program(folder: Path) -> None:
    main, side = pty.openpty()
    command = [sys.executable, "-m", "hunyuan_train", "chat", str(folder)]
    process = subprocess.Popen(
        [*command, "--temperature", "9", "--top_k", "0", "--top_p", "1"],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(side)
    try:
        read_until(main, "> ")
        os.write(main, b"Two cats?\r")
        read_until(main, "\n", characters=40)
        os.write(main, b"\x03")
        read_until(main, "> ")
        os.write(main, b"/no_think\r")
        read_until(main, "fast> ")
        os.write(main, b"\x04")
        assert process.wait(PTY_TIMEOUT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def take_terminal() -> None:
    """Make standard input the controlling terminal, which turns Ctrl-C into a signal."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


def read_until(terminal: int, text: str, *, characters: int = 0) -> str:
    """Read from a terminal until a text came, and at least that many characters."""
    seen = ""
    deadline = time.monotonic() + PTY_TIMEOUT_SECONDS
    while text not in seen or len(seen) < characters:
        assert time.monotonic() < deadline, f"{text!r} did not come, but {seen!r}"
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen

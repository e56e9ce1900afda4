"""A dialogue with a model: what was said, the next answer, and how a terminal shows it."""

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hunyuan_train.data.rendering.prompt import encode_prompt, find_opening, render_prompt
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.interface import Delta, ParsedOutput
from hunyuan_train.serve.generate import Sampling, ServedModel, generate

MAX_LIVE_LINES = 6  # of thoughts, while they come


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and how it ended."""

    parsed: ParsedOutput
    finish_reason: str  # stop, length, tool_calls, or interrupted by the user
    num_prompt_tokens: int
    num_tokens: int
    seconds: float
    is_kept: bool  # in a dialogue, which goes on from it: not if cut off before its content

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints, in the words of the OpenAI interface."""
        usage = {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": self.num_tokens}
        message = self.parsed.to_message()
        return {**message, "finish_reason": self.finish_reason, "usage": usage}


@dataclass(slots=True)
class Dialogue:
    """What was said so far, as a client of a server keeps it: answers without their thoughts."""

    served: ServedModel
    sampling: Sampling
    tools: list[dict[str, Any]] = field(default_factory=list)
    now: str = ""  # needed with tools, whose prompt shows it
    messages: list[dict[str, Any]] = field(default_factory=list)
    mode: str = "auto"  # of the last question, where not its own text says it

    def ask(
        self, question: str, *, is_fast: bool, show: Callable[[Delta], None] = lambda _: None
    ) -> Reply:
        """Put a question and take the answer into the dialogue."""
        queries = self.served.tokenizer.grammar.queries
        content = queries.ask_fast(question) if is_fast else question
        if not queries.fast_prefix:  # the prompt says it, and not the query
            self.mode = "fast" if is_fast else "slow"
        return self._answer([{"role": "user", "content": content}], show)

    def give_results(
        self, results: list[str], *, show: Callable[[Delta], None] = lambda _: None
    ) -> Reply:
        """Hand back what the called tools returned, in order, and take the answer to it."""
        return self._answer([{"role": "tool", "content": result} for result in results], show)

    def _answer(self, turns: list[dict[str, Any]], show: Callable[[Delta], None]) -> Reply:
        messages = [*self.messages, *turns]
        prompt = encode_prompt(
            messages, self.served.tokenizer, mode=self.mode, tools=self.tools, now=self.now
        )
        reply = answer(self.served, prompt, self.sampling, show, has_tools=bool(self.tools))
        said = reply.parsed.to_message()
        del said["reasoning_content"]
        if reply.is_kept and self._can_go_on([*messages, said], reply.parsed):
            self.messages = [*messages, said]
            return reply
        self._forget_open_calls()
        return replace(reply, is_kept=False)

    def _can_go_on(self, messages: list[dict[str, Any]], last: ParsedOutput) -> bool:
        """Whether a prompt may hold the last answer: not if it was cut off in its thoughts."""
        if not last.content and not last.tool_calls:
            return False
        results = [{"role": "tool", "content": "0"} for _ in last.tool_calls]
        following = results or [{"role": "user", "content": "?"}]
        grammar = self.served.tokenizer.grammar
        try:
            render_prompt(
                [*messages, *following], grammar, mode=self.mode, tools=self.tools, now=self.now
            )
        except DataError:
            return False
        return True

    def _forget_open_calls(self) -> None:
        """Drop a question whose calls were made, where no answer to their results was kept."""
        if self.messages and self.messages[-1].get("tool_calls"):
            roles = [message["role"] for message in self.messages]
            self.messages = self.messages[: len(roles) - 1 - roles[::-1].index("user")]


def answer(
    served: ServedModel,
    prompt: list[int],
    sampling: Sampling,
    show: Callable[[Delta], None],
    *,
    has_tools: bool,
) -> Reply:
    """Generate one answer, handing out what is certain of it; Ctrl-C ends it where it is."""
    stream = served.tokenizer.grammar.stream_output(has_tools=has_tools)
    stream.feed(find_opening(prompt, served.tokenizer))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
    num_tokens, has_content = 0, False

    def see_token(token: int) -> None:
        nonlocal num_tokens, has_content
        num_tokens += 1
        for delta in stream.feed(decoder.decode(served.tokenizer.token_bytes(token))):
            has_content = has_content or delta.field == "content"
            show(delta)

    started = time.perf_counter()
    try:
        _, is_finished = generate(served, prompt, sampling, see_token)
        reason = "stop" if is_finished else "length"
    except KeyboardInterrupt:
        reason = "interrupted"
    for delta in [*stream.feed(decoder.decode(b"", final=True)), *stream.finish()]:
        show(delta)
    parsed = stream.result()
    is_kept = has_content or reason == "stop"  # half a tag would be read as content
    if parsed.tool_calls:
        reason, is_kept = "tool_calls", True
    seconds = time.perf_counter() - started
    return Reply(parsed, reason, len(prompt), num_tokens, seconds, is_kept)


class TerminalView:
    """Shows an answer while it comes: thoughts dim and few lines high, then folded to one line."""

    def __init__(self, console: Console, *, is_unfolded: bool = False) -> None:
        self.console = console
        self.is_unfolded = is_unfolded  # thoughts stay on the screen
        self.thoughts = ""
        self.has_content = False
        self._live: Live | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> "TerminalView":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._fold()
        self.console.print()

    def show(self, delta: Delta) -> None:
        """Take the next piece."""
        if delta.field == "content":
            self._fold()
            self.has_content = True
            self.console.out(delta.text, end="", highlight=False)
            return
        self.thoughts += delta.text
        if self.is_unfolded:
            self.console.print(Text(delta.text, style="dim"), end="")
            return
        if self._live is None:
            self._live = Live(console=self.console, transient=True)
            self._live.start()
        lines = self.thoughts.splitlines()[-MAX_LIVE_LINES:]
        self._live.update(Text("\n".join(lines), style="dim"))

    def _fold(self) -> None:
        """Put one line in the place of the thoughts."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            seconds = time.perf_counter() - self._started
            words = len(self.thoughts.split())
            line = f"▸ thought for {seconds:.0f} s, {words} words (/think shows them)"
            self.console.print(Text(line, style="dim"))
        elif self.is_unfolded and self.thoughts and not self.has_content:
            self.console.print("\n")

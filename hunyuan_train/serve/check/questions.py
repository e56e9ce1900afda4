# ruff: noqa: RUF001  # Chinese questions
"""What a server is asked: both modes, tools, a dialogue, a long text; always the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.serve.errors import ServeError

# An argument that is an object in an object, one that is Chinese, and one that is a list.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book_table",
            "description": "Book a table in a restaurant.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "In Chinese, such as 北京."},
                    "guests": {"type": "array", "items": {"type": "string"}},
                    "time": {
                        "type": "object",
                        "properties": {"day": {"type": "string"}, "hour": {"type": "integer"}},
                    },
                },
                "required": ["city", "guests", "time"],
            },
        },
    }
]
BOOKING = (
    "Book a table in Beijing for Li Lei and Han Meimei, on Friday at 19 o'clock. 城市请用中文。"
)
SENTENCES = (
    "The baker repaired the clock before noon.",
    "Our neighbour waited for the ferry on a rainy day.",
    "The gardener sold two chairs after the market.",
)
LONG_QUESTION = "{text}\n\nWho repaired the clock, by the text above?"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckQuestion:
    """One question to a server, and to our own reading of the model."""

    name: str
    mode: str  # slow or fast
    messages: list[dict[str, Any]]  # as a client sends them, the wish for fast mode included
    tools: list[dict[str, Any]] = field(default_factory=list)
    # Of the model's own template, where that is told the mode and the query does not say it.
    options: dict[str, str] = field(default_factory=dict)
    ways: tuple[bool, ...] = (False, True)  # streamed or not

    def to_request(self, *, max_new_tokens: int, num_alternatives: int) -> dict[str, Any]:
        """The body of a request, greedy, with all that a server can show of its tokens.

        Args:
            max_new_tokens: of the answer.
            num_alternatives: beside each token; 0: no log-probabilities are asked for.
        """
        request: dict[str, Any] = {
            "messages": self.messages,
            "temperature": 0,
            "max_tokens": max_new_tokens,
            # vLLM's, and without a meaning elsewhere: the ids of prompt, answer and alternatives.
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.options:
            request["chat_template_kwargs"] = self.options
        if num_alternatives:
            request |= {"logprobs": True, "top_logprobs": num_alternatives}
        return request | ({"tools": self.tools} if self.tools else {})


def list_questions(tokenizer: Tokenizer, *, num_long_tokens: int) -> list[CheckQuestion]:
    """The fixed questions.

    Args:
        tokenizer: of the model; its grammar says how a query asks for fast mode.
        num_long_tokens: of the long text; 0: none is asked.
    """
    fast = tokenizer.grammar.queries.ask_fast
    questions = [
        _ask("slow", "How many legs do three cats and two hens have in all?"),
        _ask("slow, Chinese", "一箱牛奶24盒，每天喝3盒，能喝几天？"),
        _ask("fast", fast("What do you call a baby sheep?")),
        _ask(
            "fast, dialogue",
            fast("And the smallest one?"),
            before=[
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": fast("太阳系里最大的行星是哪一颗？")},
                {"role": "assistant", "content": "木星"},
            ],
        ),
        _ask("slow, tools", BOOKING, tools=TOOLS),
        _ask("fast, tools", fast(BOOKING), tools=TOOLS),
    ]
    if num_long_tokens:
        content = fast(LONG_QUESTION.format(text=_write_text(num_long_tokens, tokenizer)))
        # A second time shows nothing new, and takes as long.
        questions.append(_ask("long", content, ways=(False,)))
    return [replace(one, options=options_of(tokenizer.grammar, mode=one.mode)) for one in questions]


def _ask(
    name: str,
    content: str,
    *,
    before: Sequence[dict[str, Any]] = (),
    tools: Sequence[dict[str, Any]] = (),
    ways: tuple[bool, ...] = (False, True),
) -> CheckQuestion:
    return CheckQuestion(
        name=name,
        mode="slow" if name.startswith("slow") else "fast",
        messages=[*before, {"role": "user", "content": content}],
        tools=list(tools),
        ways=ways,
    )


def options_of(grammar: Grammar, *, mode: str) -> dict[str, str]:
    """What tells a template of a mode; nothing where the query says it."""
    words = [word for word, its_mode in grammar.efforts.items() if its_mode == mode]
    return {grammar.options[0]: words[-1]} if words else {}


def _write_text(num_tokens: int, tokenizer: Tokenizer) -> str:
    """Sentences of at least that many tokens."""
    block = " ".join(SENTENCES)
    return " ".join([block] * -(-num_tokens // len(tokenizer.encode(f" {block}"))))


def read_questions(path: Path, grammar: Grammar) -> list[CheckQuestion]:
    """Questions of the user's own: JSON lines with messages, asked up to the last user turn.

    Raises:
        ServeError: the file cannot be read, or a line is no dialogue.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ServeError(f"questions is {path}, which cannot be read ({error})") from error
    if not records:
        raise ServeError(f"questions is {path}, which is empty; give JSON lines with messages")
    return [_read_record(f"{path.name}:{row + 1}", one, grammar) for row, one in enumerate(records)]


def _read_record(name: str, record: object, grammar: Grammar) -> CheckQuestion:
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(messages, list):
        raise ServeError(f'{name} has no messages; give {{"messages": [...]}} on each line')
    while messages and messages[-1].get("role") not in ("user", "tool"):
        messages = messages[:-1]
    if not messages:
        raise ServeError(f"{name} has no user message to ask")
    asks_fast = grammar.queries.asks_fast
    if record.get("mode") == "fast" and messages[-1]["role"] == "user":
        last = messages[-1]
        messages = [*messages[:-1], {**last, "content": grammar.queries.ask_fast(last["content"])}]
    queries = [one["content"] for one in messages if one["role"] == "user"]
    is_fast = bool(queries) and asks_fast(str(queries[-1]))
    mode, options = "fast" if is_fast else "slow", _read_options(record, grammar)
    if options:
        mode = grammar.efforts[next(iter(options.values()))]
    sent = [{key: one[key] for key in one if key != "reasoning_content"} for one in messages]
    tools = record.get("tools") or []
    return CheckQuestion(name=name, mode=mode, messages=sent, tools=tools, options=options)


def _read_options(record: dict[str, Any], grammar: Grammar) -> dict[str, str]:
    """How much a record says to think, to a grammar with words for it; else fast, as templates."""
    stated = next((record[one] for one in (*grammar.options[:1], "effort") if record.get(one)), "")
    if stated and stated in grammar.efforts:
        return {grammar.options[0]: stated}
    return options_of(grammar, mode="slow" if record.get("mode") == "slow" else "fast")

# ruff: noqa: RUF001  # Chinese questions
"""What a server is asked: both modes, tools, a dialogue, a long text; always the same."""

import json
from dataclasses import dataclass, field
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
        _ask("slow", "slow", "How many legs do three cats and two hens have in all?"),
        _ask("slow, Chinese", "slow", "一箱牛奶24盒，每天喝3盒，能喝几天？"),
        _ask("fast", "fast", fast("What do you call a baby sheep?")),
        CheckQuestion(
            name="fast, dialogue",
            mode="fast",
            messages=[
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": fast("太阳系里最大的行星是哪一颗？")},
                {"role": "assistant", "content": "木星"},
                {"role": "user", "content": fast("And the smallest one?")},
            ],
        ),
        _ask("slow, tools", "slow", BOOKING, TOOLS),
        _ask("fast, tools", "fast", fast(BOOKING), TOOLS),
    ]
    if num_long_tokens:
        text = _write_text(num_long_tokens, tokenizer)
        content = fast(LONG_QUESTION.format(text=text))
        questions.append(
            CheckQuestion(
                name="long",
                mode="fast",
                messages=[{"role": "user", "content": content}],
                ways=(False,),  # a second time shows nothing new, and takes as long
            )
        )
    return questions


def _ask(
    name: str, mode: str, content: str, tools: list[dict[str, Any]] | None = None
) -> CheckQuestion:
    messages = [{"role": "user", "content": content}]
    return CheckQuestion(name=name, mode=mode, messages=messages, tools=tools or [])


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
    sent = [{key: one[key] for key in one if key != "reasoning_content"} for one in messages]
    return CheckQuestion(
        name=name,
        mode="fast" if is_fast else "slow",
        messages=sent,
        tools=record.get("tools") or [],
    )

"""A dialogue as all grammars render it, whatever form its record had."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

ROLES = ("system", "user", "assistant", "tool")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

DOCUMENT = "text"  # role of the one message of a plain text, which is no dialogue

# "text" is the mode of plain text: nobody is asked, and nobody answers.
Mode = Literal["plain", "fast", "slow", "text"]
# Their numbers in the cache and in batches.
MODES: tuple[Mode, ...] = ("plain", "fast", "slow", "text")


class ToolCall(NamedTuple):
    """A function to call, its arguments as the JSON text that is rendered."""

    name: str
    arguments: str
    extra: tuple[tuple[str, Any], ...] = ()  # fields that conversion keeps, such as its id


@dataclass(slots=True)
class Message:
    """One turn. Its content carries no tags, unless the record was read as written."""

    role: str
    content: str
    thoughts: str | None = None  # None: not stated; "": an empty think block
    tool_calls: list[ToolCall] | None = None
    mode: Mode = "plain"  # of an assistant turn; plain: nothing marks it
    is_trained: bool = True
    is_context: bool = False  # bare turn of a slow dialogue: no target of its own under strip
    weight: float = 1.0
    extra: dict[str, Any] | None = None  # fields that conversion keeps


@dataclass(slots=True)
class Dialogue:
    """A record ready to render."""

    messages: list[Message]
    tools: list[Any] = field(default_factory=list)
    now: str = ""  # set where tools are
    stated_mode: str | None = None
    has_run_mode: bool = False  # it states no mode, and the run's was taken
    # Read as written: what the client hands the model's own template beside the messages.
    template_options: dict[str, Any] = field(default_factory=dict)
    form: str = "messages"
    extra: dict[str, Any] = field(default_factory=dict)  # fields that conversion keeps

    @property
    def is_document(self) -> bool:
        """Whether it is plain text, to be continued from its first token on."""
        return bool(self.messages) and self.messages[0].role == DOCUMENT


def dump_json(value: object) -> str:
    """JSON as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)

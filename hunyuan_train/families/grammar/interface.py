"""What a grammar is: how one kind of checkpoint writes a dialogue, and how its answers are read.

A grammar belongs to a tokenizer and not to an architecture: checkpoints of one architecture differ
in their markers. `find.py` finds the grammar of a tokenizer folder. Whatever lies above `families`
asks the grammar that it is handed and spells no marker itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from hunyuan_train.families.grammar.dialogue import Dialogue, Mode, ToolCall
from hunyuan_train.families.grammar.segments import Rendering, Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlTokens:
    """Control tokens by name; their ids are the tokenizer's. Text of data never becomes one."""

    written: tuple[str, ...]  # those that renderings hold
    end: str  # closes an answer
    pad: str  # fills; never a label
    stops: tuple[str, ...]  # those on which generation ends
    ends: tuple[str, ...]  # those that a config.json may name as the end of a text
    find: Callable[[str], str]  # the first one that a text spells; "" where it spells none


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryForm:
    """How a query asks for fast mode by its own text; slow mode needs no word.

    A grammar that says the mode elsewhere has an empty prefix, and no query asks.
    """

    fast_prefix: str  # as we write it; `asks_fast` may know other spellings
    asks_fast: Callable[[str], bool]
    ask_fast: Callable[[str], str]  # the query asking for fast mode, once
    strip: Callable[[str], str]  # the query without its wish for fast mode

    @property
    def fast_word(self) -> str:
        """What a user types to ask for it."""
        return self.fast_prefix.strip()


class TaggedText(NamedTuple):
    """An assistant message taken apart."""

    thoughts: str | None  # None: the text has no tags; "": an empty think block
    answer: str
    repair: str = ""  # what had to be fixed
    error: str = ""  # why it cannot be
    kind: str = "tags"  # of finding, where there is a repair or an error


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerForm:
    """How thoughts and answer stand in one text."""

    write: Callable[[str, str], str]  # thoughts ("" in fast mode) and answer, as the model does
    read: Callable[[str], TaggedText]  # a message of a record, which may carry tags as text
    read_apart: Callable[[str, str], TaggedText]  # thoughts and answer of a record, two fields
    find_cut: Callable[[str, str], str]  # where a server would cut thoughts or answer; "" if not
    find_foreign: Callable[[str], list[str]]  # marks of other models in thoughts or answer
    is_thinking: Callable[[str], bool]  # whether an output has thoughts, even in broken tags


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolForm:
    """How calls stand in an answer, and what changes in a dialogue that offers tools."""

    labels: Mapping[str, str]  # what stands before the text of a role where tools are offered
    call_marks: tuple[str, str]  # before and behind the calls of an answer
    result_marks: tuple[str, str]  # before and behind the result of a call
    split_calls: Callable[[str], tuple[str, object] | None]  # text before calls, and their JSON
    find_cut: Callable[[str], str]  # where a server would cut JSON arguments; "" if not
    are_offered: Callable[[str], bool]  # whether an answer shows that its prompt offered tools
    read_offered: Callable[[str], list[Any]]  # the tools that the text of a prompt offers
    has_bare_values: bool = False  # whether only the schema of a tool says if `5` is a text


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """An answer's parts, under the names of the OpenAI interface."""

    reasoning_content: str | None  # None in fast mode, and where the grammar is not followed
    content: str | None  # None where nothing is left beside the calls
    tool_calls: tuple[ToolCall, ...] = ()
    is_well_formed: bool = False  # follows the grammar from the first character to the last

    def to_message(self) -> dict[str, Any]:
        """The assistant message that a server would return."""
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        return {
            "role": "assistant",
            "reasoning_content": self.reasoning_content,
            "content": self.content,
            "tool_calls": calls,
        }


class Delta(NamedTuple):
    """A piece of an answer that is certain, and the field it belongs to."""

    field: Literal["reasoning_content", "content"]
    text: str


class OutputStream(Protocol):
    """Parses an answer while it is generated, whatever pieces it comes in."""

    def feed(self, piece: str) -> list[Delta]:
        """Take the next piece; return what it made certain."""

    def finish(self) -> list[Delta]:
        """Say that nothing follows; return what is left."""

    def result(self) -> ParsedOutput:
        """What is served of all that was fed."""


class Render(Protocol):
    """Lays out the samples of a dialogue, with what carries loss."""

    def __call__(
        self, dialogue: Dialogue, *, history: str = "strip", loss: str = "all"
    ) -> Rendering:
        """Every sample of the dialogue.

        Args:
            history: "strip": one sample per trained answer, earlier answers as the server's
                template writes them, loss on that answer; "keep": one sample, every answer as a
                target.
            loss: "last" leaves loss on the last answer only.
        """


class RenderPrompt(Protocol):
    """Writes what a server feeds the model."""

    def __call__(self, dialogue: Dialogue, *, mode: str = "auto") -> list[Segment]:
        """Earlier answers as the server's template writes them, the last turn open.

        Args:
            mode: "fast" or "slow" asks for that mode; "auto" adds nothing to what is sent.
        """


class WriteServed(Protocol):
    """Writes what the model's own template makes of a dialogue as a client sends it."""

    def __call__(self, dialogue: Dialogue, *, adds_prompt: bool) -> list[Segment]:
        """Every turn as it is.

        Args:
            adds_prompt: whether the client asks for an answer.
        """


class ParseOutput(Protocol):
    """Takes an answer apart as the serving parsers do."""

    def __call__(self, text: str, *, has_tools: bool = False) -> ParsedOutput:
        """Split a generated answer, its stop token removed.

        Args:
            has_tools: whether the prompt offered tools; calls are looked for only then.
        """


class StreamOutput(Protocol):
    """Starts a parser for an answer that is still being written."""

    def __call__(self, *, has_tools: bool = False) -> OutputStream:
        """A stream that has seen nothing yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """How dialogues are written for a model, and its answers read."""

    name: str
    controls: ControlTokens
    queries: QueryForm
    answers: AnswerForm
    tools: ToolForm
    render: Render
    render_prompt: RenderPrompt
    parse_output: ParseOutput
    stream_output: StreamOutput
    # `render_prompt` in Jinja, for servers; "" where the model's own folder has the only one.
    chat_template: str
    known_templates: tuple[str, ...] = ()  # SHA-256 of others that do the same, see template_files
    has_modes: bool = True  # whether answers are written with and without thinking
    # Where a record's own fields decide what its template writes, and what they are.
    write_served: WriteServed | None = None
    options: tuple[str, ...] = ()
    efforts: Mapping[str, Mode] = field(default_factory=dict)  # words of how much to think
    opens_thoughts: str = ""  # the control token with which a prompt asks for thoughts
    joins_systems: str = "\n\n"  # what stands between several system messages
    joins_parts: str = "\n"  # and between the parts of one content
    missing: str = ""  # characters that the vocabulary cannot encode

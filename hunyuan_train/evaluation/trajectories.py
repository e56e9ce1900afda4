"""Held-out trajectories with tools, walked through turn by turn, with their recorded results.

At each turn of the assistant the model is asked. Its calls are compared with those of the record.
Where they are the same by type and value, its own turn goes into the history, and otherwise that of
the record. Then come the recorded results. So nothing is executed, and no turn is lost behind a
mistake.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hunyuan_train.data.compiled.compile import read_records
from hunyuan_train.data.findings import build_policies
from hunyuan_train.data.reading.readers import read_chunks
from hunyuan_train.data.reading.sources import find_sources
from hunyuan_train.data.records.record import Reading
from hunyuan_train.data.rendering.encode import encode_segments
from hunyuan_train.data.rendering.prompt import find_opening
from hunyuan_train.evaluation.tool_calls import CallScore, are_alike, score_calls
from hunyuan_train.families.grammar.dialogue import Dialogue, Message, ToolCall
from hunyuan_train.families.grammar.interface import ParsedOutput
from hunyuan_train.families.grammar.tokenizer import Tokenizer

Ask = Callable[[list[list[int]]], list[str]]  # prompts to answers, in order


@dataclass(slots=True)
class Walk:
    """One trajectory, and how far it has been walked."""

    dialogue: Dialogue  # as it was recorded
    origin: str  # file:line
    history: list[Message] = field(default_factory=list)  # before the turn that is asked for
    place: int = 0  # of that turn in the record
    scores: list[CallScore] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._go_on()

    @property
    def is_over(self) -> bool:
        """Whether no turn is left."""
        return self.place >= len(self.dialogue.messages)

    def prompt(self, tokenizer: Tokenizer) -> list[int]:
        """What a server would feed the model for the next turn."""
        mode = self.dialogue.messages[self.place].mode
        so_far = replace(self.dialogue, messages=self.history)
        segments = tokenizer.grammar.render_prompt(so_far, mode="auto" if mode == "plain" else mode)
        ids: list[int] = encode_segments(segments, tokenizer)[0].tolist()
        return ids

    def take(self, output: str, tokenizer: Tokenizer) -> None:
        """Score the model's turn, and walk on to the next one."""
        recorded, tools = self.dialogue.messages[self.place], self.dialogue.tools
        calls = recorded.tool_calls or []
        opening = find_opening(self.prompt(tokenizer), tokenizer)
        given = tokenizer.grammar.parse_output(opening + output, has_tools=True)
        wanted = ParsedOutput(None, recorded.content or None, tuple(calls))
        score = score_calls(wanted, given, output, tokenizer.grammar, tools)
        self.scores.append(score)
        self.rows.append(
            {
                "trajectory": self.origin,
                "turn": len(self.scores),
                "is_right": score.is_right,
                "recorded": [[call.name, call.arguments] for call in calls],
                "given": [[call.name, call.arguments] for call in given.tool_calls],
                "output": output,
            }
        )
        own = replace(
            recorded, content=given.content or "", tool_calls=_order(calls, given.tool_calls, tools)
        )
        self.history.append(own if score.is_right and calls else recorded)
        self.place += 1
        self._go_on()

    def _go_on(self) -> None:
        """Take over the record up to the next turn of the assistant."""
        while not self.is_over and self.dialogue.messages[self.place].role != "assistant":
            self.history.append(self.dialogue.messages[self.place])
            self.place += 1


def _order(
    calls: Sequence[ToolCall], given: Sequence[ToolCall], tools: Sequence[Any]
) -> list[ToolCall]:
    """The model's calls in the order of the record's, which is that of the results."""
    rest = list(given)
    ordered = []
    for call in calls:
        found = next((one for one in rest if are_alike(call, one, tools)), None)
        if found is not None:
            rest.remove(found)
            ordered.append(found)
    return ordered


def read_trajectories(name: str, tokenizer: Tokenizer, number: int) -> list[Walk]:
    """The first dialogues of a file in which tools are called.

    Args:
        name: file or folder, in any form.
        tokenizer: of the model.
        number: of dialogues, at most.
    """
    walks = []
    for dialogue, origin in _read(name, tokenizer):
        if any(message.tool_calls for message in dialogue.messages):
            walks.append(Walk(dialogue, origin))
        if len(walks) == number:
            break
    return walks


def _read(name: str, tokenizer: Tokenizer) -> Iterator[tuple[Dialogue, str]]:
    policies = build_policies({"untagged": "note"})  # nothing is taught
    for source in find_sources(name, setting="FILE"):
        for chunk in read_chunks(source.path):
            reading = Reading(tokenizer.grammar)
            for record in read_records(chunk, reading, policies, [], Counter()):
                yield record.dialogue, f"{Path(chunk.path).name}:{record.line}"


def walk_trajectories(walks: Sequence[Walk], tokenizer: Tokenizer, ask: Ask) -> None:
    """Walk through all of them, a turn of each at a time."""
    while going := [walk for walk in walks if not walk.is_over]:
        outputs = ask([walk.prompt(tokenizer) for walk in going])
        for walk, output in zip(going, outputs, strict=True):
            walk.take(output, tokenizer)


def summarize_trajectories(walks: Sequence[Walk]) -> dict[str, float | int]:
    """How many were walked without a mistake, and how many turns were right."""
    turns = [score.is_right for walk in walks for score in walk.scores]
    until = [_count_until_mistake(walk.scores) / len(walk.scores) for walk in walks]
    return {
        "trajectories": len(walks),
        "trajectory_success": sum(one == 1 for one in until) / len(walks),
        "trajectory_progress": sum(until) / len(walks),
        "trajectory_turns": sum(turns) / len(turns),
    }


def _count_until_mistake(scores: Sequence[CallScore]) -> int:
    return next((n for n, score in enumerate(scores) if not score.is_right), len(scores))

"""A rendered dialogue: stretches of text and control tokens, and what of it carries loss."""

from dataclasses import dataclass
from typing import NamedTuple

from hunyuan_train.families.grammar.dialogue import Mode

# Kinds of loss a token can carry; their numbers are those in the cache and in batches.
SPAN_NONE, SPAN_THINK, SPAN_ANSWER, SPAN_MARKER, SPAN_TEXT = range(5)
SPANS = ("none", "think", "answer", "marker", "text")


class Segment(NamedTuple):
    """A stretch of the rendered dialogue."""

    text: str
    role: str
    span: int = SPAN_NONE
    weight: float = 0.0  # 0 carries no loss
    is_special: bool = False


class Target(NamedTuple):
    """One sample: the first `num_history` segments of the history, then its own."""

    num_history: int
    segments: list[Segment]
    mode: Mode
    message: int | None = None  # index of the one answer it trains; None: every answer
    num_bare: int = 0  # segments of the history that are this answer as later turns see it


@dataclass(slots=True)
class Rendering:
    """All samples of a dialogue. They share one history, which is tokenized and stored once."""

    history: list[Segment]
    targets: list[Target]

    def sample(self, index: int) -> list[Segment]:
        """The segments of one sample in reading order."""
        target = self.targets[index]
        return self.history[: target.num_history] + target.segments

    def last_sample(self) -> list[Segment]:
        """The sample of the last answer."""
        return self.sample(len(self.targets) - 1)

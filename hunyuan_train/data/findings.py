"""What can be wrong with a data file, and what is done about each kind of it.

Every finding names its place, the field, the reason and the fix. A *kind* groups findings that
deserve the same treatment; `POLICIES` is the one table of kinds, defaults and allowed choices.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, NamedTuple, get_args

from hunyuan_train.errors import DataError

# error: refuse the file · drop: leave the record out, counted · fix: repair the record, counted
# note: use the record as it is, counted
Action = Literal["error", "drop", "fix", "note"]


class Policy(NamedTuple):
    """The treatment of one kind of finding."""

    default: Action
    allowed: tuple[Action, ...]
    meaning: str


_SETTING = "data_policy (--policy)"

_REFUSE: tuple[Action, ...] = ("error", "drop")
_REPAIR: tuple[Action, ...] = ("error", "drop", "fix")
_ACCEPT: tuple[Action, ...] = ("error", "drop", "note")

POLICIES: dict[str, Policy] = {
    # the folder
    "unread_entry": Policy("error", ("error", "note"), "an entry of a folder that cannot be read"),
    "passed_over": Policy("note", ("error", "note"), "a folder's entry that holds no dialogues"),
    # the file
    "empty_file": Policy("error", ("error", "note"), "a file without a single record"),
    "broken_file": Policy("error", ("error",), "a file that cannot be read to its end"),
    "bom": Policy("note", ("error", "note"), "a byte order mark before the first record"),
    "misnamed": Policy("note", ("error", "note"), "a file that is not what its name says"),
    "column_type": Policy("note", ("error", "note"), "a column of a type that JSON does not have"),
    "blank_line": Policy("note", ("error", "note"), "lines with nothing on them"),
    # the line
    "encoding": Policy("error", _REFUSE, "bytes that are not UTF-8"),
    "json": Policy("error", _REFUSE, "not JSON, NaN or Infinity, a cut line"),
    "duplicate_key": Policy("error", _REFUSE, "the same key twice in one object"),
    "size": Policy("error", _REPAIR, "a line or a run of blanks beyond what can be tokenized"),
    "surrogate": Policy("fix", _REPAIR, "half of a surrogate pair"),
    # the form
    "form": Policy("error", _REFUSE, "no known form of record"),
    "converted": Policy("note", _ACCEPT, "a record, or a field of it, in another form than ours"),
    "unused_field": Policy("note", _ACCEPT, "a field about the record, which is not read"),
    "unread_text": Policy("error", _ACCEPT, "a field of the dialogue that training does not read"),
    "role": Policy("fix", _REPAIR, "a role in capitals, or one that is not known"),
    "order": Policy("error", _REFUSE, "messages in an order that the model never sees"),
    "system": Policy("error", _REPAIR, "several system messages, or one that is not the first"),
    "empty_system": Policy("fix", _REPAIR, "a system message without text"),
    "repeated_role": Policy("error", _REPAIR, "two user or two assistant messages in a row"),
    "trailing_user": Policy("fix", _REPAIR, "messages after the last answer"),
    "no_answer": Policy("error", _REFUSE, "nothing to learn from"),
    # the content
    "empty_user": Policy("error", _REFUSE, "a question without text"),
    "empty_answer": Policy("error", _REFUSE, "an answer without text or tool call"),
    "empty_text": Policy("error", _REFUSE, "a plain text without a word"),
    "content_type": Policy("fix", _REPAIR, "content that is not a string"),
    "tags": Policy("fix", _REPAIR, "think and answer tags outside the served grammar"),
    "unopened_think": Policy("error", _REPAIR, "thoughts that are closed and were never opened"),
    "unclosed_tag": Policy("error", _REPAIR, "thoughts or an answer that are never closed"),
    "think_blocks": Policy("error", _REPAIR, "several think blocks before one answer"),
    "foreign_markers": Policy("error", _ACCEPT, "marks of another model or agent in an answer"),
    "mode": Policy("error", _REPAIR, "a mode that the messages contradict"),
    "history_only": Policy("note", _ACCEPT, "an untagged turn of a slow dialogue: context only"),
    "untagged": Policy("error", _ACCEPT, "answers in neither mode: --mode says what they teach"),
    "tools": Policy("error", _REFUSE, "a tool list, call or result that does not hold together"),
    "filled_nulls": Policy("fix", _REPAIR, "nulls that a table fills into calls and tools"),
    "tool_results": Policy("note", _ACCEPT, "more or fewer tool results than calls"),
    "result_order": Policy("fix", _REPAIR, "tool results in another order than their calls"),
    "call_field": Policy("error", _ACCEPT, "a key of a call that is not read"),
    "missing_argument": Policy("error", _ACCEPT, "a call without a required argument"),
    "odd_argument": Policy("note", _ACCEPT, "an argument that does not fit its schema"),
    "tool_schema": Policy("note", _ACCEPT, "a schema of a tool that calls cannot be checked by"),
    "unparsed_calls": Policy("error", _ACCEPT, "calls that a server would not read back as given"),
    "now": Policy("error", _REFUSE, "a time that cannot be read"),
    "weight": Policy("error", _REFUSE, "a loss field with a value that cannot be read"),
    "prompt_loss": Policy("error", _ACCEPT, "loss asked for on a message that is no answer"),
    "special_tokens": Policy("note", _ACCEPT, "control tokens typed as text; encoded as text"),
    "normalised": Policy(
        "fix", _REPAIR, "text that is not NFC, or that the vocabulary cannot encode"
    ),
    # the preference
    "pair_prompt": Policy("error", _REFUSE, "two answers that are not to the same prompt"),
    "pair_identical": Policy("error", _REFUSE, "two answers that say the same"),
    "pair_answers": Policy("error", _REFUSE, "a side of several answers, which strip takes apart"),
    "pair_mode": Policy("note", _ACCEPT, "one side thinks and the other does not"),
    # the set
    "overlong": Policy("error", _REFUSE, "longer than max_seq_length"),
    "duplicate": Policy("note", _ACCEPT, "the same dialogue again"),
    "eval_overlap": Policy("note", _ACCEPT, "a dialogue whose question is in the evaluation set"),
}


class Problem(NamedTuple):
    """One thing wrong with one record, found while reading it."""

    kind: str
    field: str
    reason: str
    fix: str
    is_repaired: bool = False


class Finding(NamedTuple):
    """A problem with its place and what was decided about it."""

    path: str
    line: int  # 1 is the first; row number in a table
    kind: str
    action: Action
    field: str
    reason: str
    fix: str

    def __str__(self) -> str:
        field = f" {self.field}:" if self.field else ""
        return f"{self.path}:{self.line}:{field} {self.reason} ({self.kind}); {self.fix}"


@dataclass(frozen=True, slots=True)
class PolicySet:
    """The chosen action of every kind."""

    actions: Mapping[str, Action]

    def decide(self, problem: Problem) -> Action:
        """What happens to a record with this problem."""
        action = self.actions[problem.kind]
        if action == "fix" and not problem.is_repaired:
            return "error"
        return action


def build_policies(choices: Mapping[str, str] | None = None) -> PolicySet:
    """Defaults with the user's choices over them, each checked."""
    actions: dict[str, Action] = {kind: policy.default for kind, policy in POLICIES.items()}
    for kind, action in (choices or {}).items():
        if kind not in POLICIES:
            raise DataError(f"{_SETTING} names the kind '{kind}'; {_suggest_kind(kind)}")
        allowed = POLICIES[kind].allowed
        if action not in allowed or action not in get_args(Action):
            raise DataError(
                f"{_SETTING} sets {kind}={action}; for this kind choose {' or '.join(allowed)}"
            )
        actions[kind] = action
    return PolicySet(actions)


def _suggest_kind(name: str) -> str:
    close = get_close_matches(name, POLICIES, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"the kinds are {', '.join(POLICIES)}"


def parse_policies(text: str) -> dict[str, str]:
    """The choices in `tags=error,duplicate=drop`.

    Raises:
        DataError: a word that is no choice, or two choices for one kind.
    """
    choices: dict[str, str] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        kind, separator, action = (part.strip() for part in word.partition("="))
        if not (kind and separator and action):
            raise DataError(f"{_SETTING} takes kind=action, like tags=error, not '{word}'")
        if choices.setdefault(kind, action) != action:
            raise DataError(f"{_SETTING} sets {kind} to {choices[kind]} and {action}; keep one")
    build_policies(choices)
    return choices


_INDEX = re.compile(r"\[\d+\]")
_WHOLE = ("", "messages", "messages[]")  # places that are no field of their own
_MAX_FIELDS = 1000  # distinct names that are counted: keys of data can be without end


@dataclass(slots=True)
class FindingLog:
    """Findings counted, and the first of each kind kept: memory does not grow with the file."""

    max_examples: int = 20  # of each kind and action
    counts: Counter[tuple[str, Action]] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)
    # How often each field was named, by kind and action: `messages[].loss`, whichever message.
    fields: dict[tuple[str, Action], Counter[str]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Count findings and keep the first ones."""
        for finding in findings:
            key = (finding.kind, finding.action)
            self.counts[key] += 1
            self._count_fields(key, finding.field)
            if self.counts[key] <= self.max_examples:
                self.examples.append(finding)

    def _count_fields(self, key: tuple[str, Action], place: str) -> None:
        counts = self.fields.setdefault(key, Counter())
        for name in _INDEX.sub("[]", place).removeprefix("[].").split(", "):
            if name not in _WHOLE and (name in counts or len(counts) < _MAX_FIELDS):
                counts[name] += 1

    def count(self, action: Action) -> int:
        """Findings that were treated in this way."""
        return sum(number for (_, done), number in self.counts.items() if done == action)

    def by_kind(self, action: Action | None = None) -> dict[str, int]:
        """Findings of each kind, of one action or of all."""
        totals: Counter[str] = Counter()
        for (kind, done), number in self.counts.items():
            if action in (None, done):
                totals[kind] += number
        return dict(totals)

    def noted_fields(self) -> dict[str, dict[str, int]]:
        """How often each field was only noted, by kind."""
        return {
            kind: dict(counts)
            for (kind, action), counts in self.fields.items()
            if action == "note" and counts
        }


def list_fields(counts: Mapping[str, int], *, max_fields: int = 8) -> str:
    """Fields with how often they were found, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {number:,}" for name, number in ordered[:max_fields])
    num_more = len(ordered) - max_fields
    return f"{shown} and {num_more:,} more" if num_more > 0 else shown

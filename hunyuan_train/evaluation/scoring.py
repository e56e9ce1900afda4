"""Questions out of a data set, and what an answer to one is worth.

An answer is taken apart as a server would; what counts is its content beside the content that the
data holds.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hunyuan_train.data.dataset import CHOSEN, Dataset
from hunyuan_train.data.rendering.prompt import find_opening
from hunyuan_train.evaluation.tool_calls import (
    CallScore,
    score_calls,
    summarize_calls,
    write_calls,
)
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.interface import Grammar, ParsedOutput
from hunyuan_train.families.grammar.tokenizer import Tokenizer

SCORED_MODES = ("fast", "slow")
_SEPARATORS = re.compile("[\n,;|\uff0c\uff1b\u3001]")  # of a set: also the full-width ones


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out prompt and the answer that the data has to it."""

    mode: str
    prompt: list[int]
    reference: str  # as it is trained, tags and all
    grammar: Grammar  # in which both are written
    tools: tuple[Any, ...] = ()  # that the prompt offers, as far as it can be read
    opening: str = ""  # what of an answer the prompt holds already, see `find_opening`

    @property
    def has_tools(self) -> bool:
        """Whether the prompt offers tools, which may show in the way the answer is written."""
        if self.tools:
            return True
        content = self.grammar.parse_output(self.reference).content or ""
        return self.grammar.tools.are_offered(content)

    def parse(self, output: str) -> ParsedOutput:
        """An answer to it, taken apart."""
        return self.grammar.parse_output(self.opening + output, has_tools=self.has_tools)


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """What one answer is worth."""

    mode: str
    is_well_formed: bool
    is_leaking: bool  # thinks where fast mode was asked for, or does not where it was not
    is_exact: bool
    set_f1: float
    calls: CallScore | None = None  # where the prompt offers tools


def choose_questions(dataset: Dataset, tokenizer: Tokenizer, number: int) -> list[Question]:
    """Questions of both modes, half each where there are so many, spread evenly over the file.

    Of samples that train several answers, the answers are asked for in turn.
    """
    modes = dataset.samples["mode"]
    is_good = np.ones(len(modes), bool) if dataset.sides is None else dataset.sides == CHOSEN
    by_mode = [
        np.flatnonzero(is_good & (modes == MODES.index(mode))).tolist() for mode in SCORED_MODES
    ]
    num_fast, num_slow = map(len, by_mode)
    fewer = min(num_fast, num_slow, number // 2)
    shares = (number - fewer, fewer) if num_fast > num_slow else (fewer, number - fewer)
    questions = []
    for mode, samples, share in zip(SCORED_MODES, by_mode, shares, strict=True):
        taken = min(share, len(samples))
        chosen = [samples[index * len(samples) // taken] for index in range(taken)]
        questions += [
            make_question(dataset, tokenizer, mode, sample, turn=turn)
            for turn, sample in enumerate(chosen)
        ]
    return questions


def make_question(
    dataset: Dataset, tokenizer: Tokenizer, mode: str, sample_id: int, *, turn: int = 0
) -> Question:
    """A sample as a question: one of its targets is the answer, all before it the prompt.

    Args:
        dataset: held-out data.
        tokenizer: of the model.
        mode: of the sample.
        sample_id: of the sample.
        turn: which of its targets, counted from the last one, around and around.
    """
    sample = dataset.sample(sample_id)
    labelled = np.flatnonzero(sample.spans)
    breaks = np.flatnonzero(np.diff(labelled) > 1)
    targets = np.split(labelled, breaks + 1)
    places = targets[-1 - turn % len(targets)]
    target = sample.tokens[int(places[0]) : int(places[-1]) + 1]
    prompt = sample.tokens[: int(places[0])]
    grammar = tokenizer.grammar
    reference = tokenizer.decode(target.tolist()).removesuffix(grammar.controls.end)
    tools = grammar.tools.read_offered(tokenizer.decode(prompt.tolist()))
    opening = find_opening(prompt.tolist(), tokenizer)
    return Question(mode, prompt.tolist(), reference, grammar, tuple(tools), opening)


def score_answer(question: Question, output: str) -> AnswerScore:
    """Compare an answer, as generated, with the data's."""
    given, wanted = question.parse(output), question.parse(question.reference)
    thinks = question.grammar.answers.is_thinking(question.opening + output)
    ours, theirs = items_of(given), items_of(wanted)
    calls = None
    if question.has_tools:
        calls = score_calls(wanted, given, output, question.grammar, question.tools)
    return AnswerScore(
        mode=question.mode,
        is_well_formed=given.is_well_formed,
        is_leaking=thinks == (question.mode == "fast"),
        is_exact=whole_of(given) == whole_of(wanted),
        set_f1=2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0,
        calls=calls,
    )


def whole_of(parsed: ParsedOutput) -> tuple[str, ...]:
    """Content and calls in a form in which equal ones are equal."""
    return (parsed.content or "").strip(), *write_calls(parsed.tool_calls)


def items_of(parsed: ParsedOutput) -> set[str]:
    """An answer as a set: what stands between commas, semicolons and newlines, and each call."""
    content, *calls = whole_of(parsed)
    return {item for part in _SEPARATORS.split(content) if (item := part.strip())} | set(calls)


def summarize(scores: Sequence[AnswerScore]) -> dict[str, float | int]:
    """Means over all answers and over those of each mode, and of calls where there are tools."""
    numbers: dict[str, float | int] = {"eval_answers": len(scores)}
    names = {"valid_format": "is_well_formed", "exact_match": "is_exact", "set_f1": "set_f1"}
    groups = {"": list(scores)}
    groups |= {f"_{mode}": [one for one in scores if one.mode == mode] for mode in SCORED_MODES}
    for suffix, group in groups.items():
        if not group:
            continue
        for name, field in names.items():
            values = [float(asdict(one)[field]) for one in group]
            numbers[f"eval_{name}{suffix}"] = sum(values) / len(group)
        if suffix:
            numbers[f"eval_mode_leak{suffix}"] = sum(one.is_leaking for one in group) / len(group)
    return numbers | summarize_calls([one.calls for one in scores if one.calls])


def describe_answer(
    question: Question, output: str, scores: AnswerScore, tokenizer: Tokenizer
) -> dict[str, Any]:
    """A line of `answers.jsonl`."""
    parsed = question.parse(output)
    return {
        **asdict(scores),
        "prompt": tokenizer.decode(question.prompt),
        "reference": question.reference,
        "output": output,
        "reasoning_content": parsed.reasoning_content,
        "content": parsed.content,
    }

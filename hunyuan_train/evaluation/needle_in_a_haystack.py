"""Needle retrieval: whether a model still finds one fact in a long text.

A text is made of plain sentences, among them the codes of some animals, of which the question asks
for one. Texts depend on the seed and the tokenizer alone, so that a model can be compared with the
one it was made from. An answer is right when it is the code and nothing else.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hunyuan_train.data.rendering.prompt import encode_prompt
from hunyuan_train.evaluation.scoring import Question, score_answer
from hunyuan_train.families.grammar.tokenizer import Tokenizer

NEEDLE_SEED = 0  # the same texts for every model
MAX_NEW_TOKENS = 48  # of an answer, which takes about twenty
ASK = (
    "{text}\n\nWhat is the code of the {name}, by the text above? Answer with the number and "
    "nothing else."
)
FACT = "The code of the {name} is {code}."
COLOURS = ("red", "blue", "green", "grey", "brown", "white", "black", "yellow")
ANIMALS = ("fox", "owl", "hare", "crane", "badger", "otter", "swan", "mole")
NUM_FACTS = 4  # one is asked for; the others show whether it is read or only found
WHO = ("The baker", "Our neighbour", "A sailor", "The old teacher", "My cousin", "The gardener")
WHAT = ("repaired the clock", "waited for the ferry", "sold two chairs", "painted the gate")
WHEN = ("before noon", "on a rainy day", "after the market", "in the spring", "without a word")


@dataclass(frozen=True, slots=True)
class Needle:
    """One text with a question to it."""

    length: int  # tokens that the prompt takes at most, and nearly takes
    depth: float  # where in the text the fact stands: 0 at its beginning, 1 at its end
    question: Question


def make_needles(
    tokenizer: Tokenizer, lengths: Sequence[int], *, number: int, seed: int
) -> list[Needle]:
    """Texts of each length, the fact at depths that are spread evenly."""
    return [
        make_needle(tokenizer, length, (index + 0.5) / number, f"{seed} {length} {index}")
        for length in lengths
        for index in range(number)
    ]


def make_needle(tokenizer: Tokenizer, length: int, depth: float, seed: str) -> Needle:
    """One text of almost `length` tokens, its question included."""
    generator = random.Random(seed)
    names = [f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS]
    name, *others = generator.sample(names, NUM_FACTS)
    code, *codes = (f"{generator.randrange(10**5):05d}" for _ in range(NUM_FACTS))
    facts = [
        (generator.random(), FACT.format(name=other, code=one))
        for other, one in zip(others, codes, strict=True)
    ]
    facts = sorted([*facts, (depth, FACT.format(name=name, code=code))])
    room = length - len(_encode(tokenizer, [], facts, name))
    filler: list[str] = []
    while room > 0:
        filler.append(" ".join(map(generator.choice, (WHO, WHAT, WHEN))) + ".")
        room -= len(tokenizer.encode(" " + filler[-1]))
    while len(prompt := _encode(tokenizer, filler, facts, name)) > length:
        filler.pop()
    reference = tokenizer.grammar.answers.write("", code)
    return Needle(length, depth, Question("fast", prompt, reference, tokenizer.grammar))


def _encode(
    tokenizer: Tokenizer, filler: Sequence[str], facts: Sequence[tuple[float, str]], name: str
) -> list[int]:
    """The prompt of a text in which each fact stands at its depth."""
    sentences = list(filler)
    for place, (depth, fact) in enumerate(facts):
        sentences.insert(place + round(depth * len(filler)), fact)
    content = ASK.format(text=" ".join(sentences), name=name)
    return encode_prompt([{"role": "user", "content": content}], tokenizer, mode="fast")


def score_needles(needles: Sequence[Needle], outputs: Sequence[str]) -> dict[str, float | int]:
    """Share of right answers, by length."""
    numbers: dict[str, float | int] = {}
    for length in sorted({needle.length for needle in needles}):
        right = [
            score_answer(needle.question, output).is_exact
            for needle, output in zip(needles, outputs, strict=True)
            if needle.length == length
        ]
        numbers[f"needles_{length}"] = sum(right) / len(right)
    return numbers


def describe_needle_scores(numbers: Mapping[str, float | int]) -> str:
    """What was found, in a line."""
    shares = {name.removeprefix("needles_"): share for name, share in numbers.items()}
    return "needles found  " + "  ".join(f"{one}: {share:.0%}" for one, share in shares.items())


def describe_needles(
    needles: Sequence[Needle], outputs: Sequence[str], *, step: int, model: str
) -> list[dict[str, Any]]:
    """Lines of `needles.jsonl`: one for each text, which is left out.

    Args:
        needles: that were asked for.
        outputs: as generated.
        step: optimizer steps of the model.
        model: what the report calls it.
    """
    return [
        {
            "step": step,
            "model": model,
            "length": needle.length,
            "depth": needle.depth,
            "is_exact": score_answer(needle.question, output).is_exact,
            "reference": needle.question.reference,
            "output": output,
        }
        for needle, output in zip(needles, outputs, strict=True)
    ]

#!/usr/bin/env python3
"""Write pairs of answers with a planted preference: short answers are chosen over long ones.

    python examples/make_preferences.py OUT.jsonl [--pairs 400] [--seed 0] [--layout pairs|labels]

Every answer is right; only its length differs. Questions never repeat, so a held-out share tells
whether the preference was learned or the pairs were.
"""

import argparse
import json
import random
from pathlib import Path

NAMES = ("Ada", "Bo", "Chen", "Dina", "Emil", "Fay", "Gus", "Hua", "Iris", "Jun", "Kim", "Lea")
THINGS = ("apples", "books", "coins", "doors", "eggs", "forks", "gloves", "hats", "jars", "keys")
LONG = (
    "Let me say this in full. {name} begins with {first} {things}, and then there are {second} "
    "more, so that in the end, all of them counted, {name} has {total} {things}."
)


def make_pairs(number: int, seed: int) -> list[dict[str, str]]:
    """Pairs of answers to questions that differ."""
    draw = random.Random(seed)
    kinds = [
        (name, things, first, second)
        for name in NAMES
        for things in THINGS
        for first in range(2, 9)
        for second in range(2, 9)
    ]
    pairs = []
    for name, things, first, second in draw.sample(kinds, number):
        total = first + second
        words = {"name": name, "things": things, "first": first, "second": second, "total": total}
        pairs.append(
            {
                "mode": "fast",
                "prompt": f"{name} has {first} {things} and gets {second}. How many now?",
                "chosen": f"{total} {things}.",
                "rejected": LONG.format(**words),
            }
        )
    return pairs


def take_apart(pairs: list[dict[str, str]]) -> list[dict[str, object]]:
    """Each answer as a record of its own with a label: a good one, then the bad one of another."""
    records: list[dict[str, object]] = []
    for index, pair in enumerate(pairs):
        other = pairs[(index + 1) % len(pairs)]
        for source, side, label in ((pair, "chosen", True), (other, "rejected", False)):
            shared = {"mode": source["mode"], "prompt": source["prompt"]}
            records.append({**shared, "completion": source[side], "label": label})
    return records


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("pairs", "labels"), default="pairs")
    arguments = parser.parse_args()
    records: list[dict[str, object]] = list(make_pairs(arguments.pairs, arguments.seed))
    if arguments.layout == "labels":
        records = take_apart(make_pairs(arguments.pairs, arguments.seed))
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

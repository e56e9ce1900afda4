"""Writes dialogues for entity extraction: notes of riders, and the bicycle models that they name.

    python examples/make_entities.py entities

makes entities/train.jsonl and entities/test.jsonl. Every note is put together from sentences with
places for models, all made up; half of the records are fast, half slow. No note of one file is in
the other.
"""

import argparse
import json
import random
from pathlib import Path

MODELS = ("Hare", "Mist", "Oak", "Sage", "Pine", "Wren", "Tern", "Fox")
TOWNS = ("Dunwick", "Arnfeld", "Sele", "Port Maro", "Ludley", "Sandhope")
QUESTION = "Name the bicycle models in this note:\n"

NAMING = (
    "I sold my {model} last week.",
    "The {model} climbs well.",
    "Is the {model} worth the money?",
    "My brother rides an old {model}.",
    "We took a {model} to {town}.",
    "The brakes of the {model} are weak.",
)
OTHER = (
    "Rain again, the road to {town} is closed.",
    "Where can I get a new chain?",
    "The shop in {town} opens at nine.",
    "My tyres are flat.",
)


def write_note(generator: random.Random) -> tuple[str, list[str]]:
    """A note of one or two sentences, and the models that it names, in order."""
    models = generator.sample(MODELS, 2)
    sentences, named = [], []
    for model in models[: generator.randint(1, 2)]:
        is_naming = generator.random() < 0.7
        sentence = generator.choice(NAMING if is_naming else OTHER)
        sentences.append(sentence.format(model=model, town=generator.choice(TOWNS)))
        named += [model] if is_naming else []
    return " ".join(sentences), named


def make_record(note: str, models: list[str], mode: str) -> dict:
    """A dialogue as training reads it."""
    answer = {"role": "assistant", "content": "; ".join(models) or "none"}
    if mode == "slow":
        seen = f"The note says {' and '.join(models)}." if models else "The note names no model."
        answer["reasoning_content"] = seen
    return {"mode": mode, "messages": [{"role": "user", "content": QUESTION + note}, answer]}


def make_records(number: int, seed: int) -> list[dict]:
    """Records whose notes are all different, fast and slow in turn."""
    generator = random.Random(seed)
    notes: dict[str, list[str]] = {}
    while len(notes) < number:
        note, models = write_note(generator)
        notes[note] = models
    modes = ("fast", "slow")
    return [
        make_record(note, models, modes[index % 2])
        for index, (note, models) in enumerate(notes.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where train.jsonl and test.jsonl are written")
    parser.add_argument("--train", type=int, default=1200, help="records (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="records (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    records = make_records(arguments.train + arguments.test, arguments.seed)
    files = {"train": records[: arguments.train], "test": records[arguments.train :]}
    for name, part in files.items():
        path = arguments.folder / f"{name}.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in part]
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {len(part)} records")


if __name__ == "__main__":
    main()

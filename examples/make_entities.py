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

MODELS = ("Heron", "Otter", "Lynx", "Marten", "Kite", "Osprey", "Badger", "Wren", "Stoat", "Ibex")
TOWNS = ("Dunwick", "Arnfeld", "Sele", "Port Maro")
QUESTION = "Name the bicycle models in this note:\n"

WITH_MODELS = (
    "I sold my {} last week and bought a {}.",
    "The {} climbs better than the {}.",
    "Is the {} worth the money?",
    "My brother rides an old {}.",
    "We took a {} to {town}.",
    "The brakes of the {} are weak.",
)
WITHOUT = (
    "Rain again, the road to {town} is closed.",
    "Where can I get a new chain?",
    "The shop in {town} opens at nine.",
    "My tyres are flat.",
)


def write_note(generator: random.Random) -> tuple[str, list[str]]:
    """A note of one to three sentences, and every mention of a model in it, in order."""
    sentences, mentions = [], []
    for _ in range(generator.randint(1, 3)):
        sentence = generator.choice(WITH_MODELS if generator.random() < 0.6 else WITHOUT)
        named = [generator.choice(MODELS) for _ in range(sentence.count("{}"))]
        sentences.append(sentence.format(*named, town=generator.choice(TOWNS)))
        mentions += named
    return " ".join(sentences), mentions


def make_record(note: str, mentions: list[str], mode: str) -> dict:
    """A dialogue as training reads it."""
    models = list(dict.fromkeys(mentions))
    answer = {"role": "assistant", "content": "; ".join(models) if models else "none"}
    if mode == "slow":
        seen = f"The note says {', '.join(mentions)}." if mentions else "The note names no model."
        answer["reasoning_content"] = seen
    return {"mode": mode, "messages": [{"role": "user", "content": QUESTION + note}, answer]}


def make_records(number: int, seed: int) -> list[dict]:
    """Records whose notes are all different, fast and slow in turn."""
    generator = random.Random(seed)
    notes: dict[str, list[str]] = {}
    while len(notes) < number:
        note, mentions = write_note(generator)
        notes[note] = mentions
    modes = ("fast", "slow")
    return [
        make_record(note, mentions, modes[index % 2])
        for index, (note, mentions) in enumerate(notes.items())
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

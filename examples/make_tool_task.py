#!/usr/bin/env python3
"""Write dialogues in which tools are called by a rule: none, one or two calls, then an answer.

    python examples/make_tool_task.py OUT.jsonl EVAL.jsonl [--dialogues 600] [--held_out 16]

Results are made up by the script, and recorded. No question is in both files.
"""

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

CITIES = ("Rome", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Paris", "Tokyo")
DAYS = ("today", "tomorrow")
ROOMS = ("kitchen", "hall", "office", "attic")
SKIES = ("sunny", "cloudy", "windy", "rainy")
QUESTIONS = ("Weather in {city} {day}?", "How is it in {city} {day}?", "Is {city} sunny {day}?")
THANKS = ("Thanks", "Hello", "Good morning", "Good night")


def describe(name: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, all of whose arguments are required."""
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    describe("weather", city={"type": "string"}, day={"type": "string", "enum": list(DAYS)}),
    describe("lamp", room={"type": "string", "enum": list(ROOMS)}, on={"type": "boolean"}),
]
Call = dict[str, Any]


def call(name: str, **arguments: object) -> Call:
    """A call as clients see it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def list_tasks(draw: random.Random) -> list[tuple[str, list[Call], list[str], str]]:
    """Question, calls, results and answer of every task there is."""
    tasks: list[tuple[str, list[Call], list[str], str]] = []
    for city, day in itertools.product(CITIES, DAYS):
        sky = draw.choice(SKIES)
        asked = [words.format(city=city, day=day) for words in QUESTIONS]
        calls = [call("weather", city=city, day=day)]
        tasks += [(one, calls, [sky], f"It is {sky}.") for one in asked]
    for one, two in itertools.permutations(CITIES, 2):
        skies = [draw.choice(SKIES) for _ in range(2)]
        calls = [call("weather", city=city, day="today") for city in (one, two)]
        tasks.append((f"Weather in {one} and {two} today?", calls, skies, " and ".join(skies)))
    for room, on in itertools.product(ROOMS, (True, False)):
        word = "on" if on else "off"
        calls = [call("lamp", room=room, on=on)]
        for please in ("Please turn", "Turn", "Could you turn", "Now turn"):
            tasks.append((f"{please} {word} the lamp in the {room}.", calls, ["done"], "Done."))
    for word, city in itertools.product(THANKS, CITIES):
        tasks.append((f"{word} from {city}!", [], [], f"{word}!"))
    return tasks


def make_dialogues(number: int, num_held_out: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Dialogues for training, and those that are held out, whose questions are none of these."""
    draw = random.Random(seed)
    tasks = list_tasks(draw)
    draw.shuffle(tasks)
    held_out, trained = tasks[:num_held_out], tasks[num_held_out:]
    repeated = [draw.choice(trained) for _ in range(max(0, number - len(trained)))]
    return [write(one) for one in [*trained, *repeated][:number]], [write(one) for one in held_out]


def write(task: tuple[str, list[Call], list[str], str]) -> dict[str, Any]:
    """A task as a record."""
    question, calls, results, answer = task
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if calls:
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    messages += [{"role": "tool", "content": result} for result in results]
    messages.append({"role": "assistant", "content": answer})
    return {"mode": "fast", "now": "2026-03-02 09:15:00", "tools": TOOLS, "messages": messages}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("eval_out", type=Path)
    parser.add_argument("--dialogues", type=int, default=600)
    parser.add_argument("--held_out", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trained, held_out = make_dialogues(arguments.dialogues, arguments.held_out, arguments.seed)
    for path, records in ((arguments.out, trained), (arguments.eval_out, held_out)):
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Write dialogues in which tools are called by a rule: none, one or two calls, then an answer.

    python examples/make_tool_task.py TOOLS.jsonl BASICS.jsonl EVAL.jsonl [--dialogues 400]

TOOLS has several questions a dialogue, EVAL one. BASICS has the same questions as TOOLS, without
tools: the answers are the calls, as JSON. Results are made up by the script, and recorded. No
question of EVAL is in the other files.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CITIES = ("Rome", "Oslo", "Cairo", "Lima", "Delhi", "Tokyo")
DAYS = ("today", "tomorrow")
ROOMS = ("kitchen", "hall", "office", "attic", "garage", "cellar")
STATES = {"on": True, "off": False}
SKIES = ("sunny", "cloudy", "windy", "rainy")
WEATHER = ("Weather in {} {}?", "How is it in {} {}?", "Is {} sunny {}?")
LAMP = ("Please turn the {} lamp {}.", "Turn the {} lamp {}.", "Now the {} lamp {}.")
BOTH = "Weather in {} {}, and turn the {} lamp {}."
GREETINGS = ("Hello", "Good morning", "Good evening", "Greetings", "Best wishes")
QUESTIONS = 4  # of a dialogue for training
SHARES = (1, 1, 3, 1)  # of the kinds of tasks: the third, with two calls, takes longest to learn

Call = dict[str, Any]
Task = tuple[str, list[Call], list[str], str]  # question, calls, their results, answer


def describe(name: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, all of whose arguments are required."""
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    describe("weather", city={"type": "string"}, day={"type": "string", "enum": list(DAYS)}),
    describe("lamp", room={"type": "string"}, on={"type": "boolean"}),
]


def call(name: str, **arguments: object) -> Call:
    """A call as clients see it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def list_tasks(draw: random.Random) -> list[list[Task]]:
    """Every task there is, by kind: weather, lamp, both, neither."""
    kinds: list[list[Task]] = [[], [], [], []]
    weather = [*itertools.product(CITIES, DAYS)]
    lamps = [*itertools.product(ROOMS, STATES)]
    for city, day in weather:
        sky, calls = draw.choice(SKIES), [call("weather", city=city, day=day)]
        kinds[0] += [(asked.format(city, day), calls, [sky], f"It is {sky}.") for asked in WEATHER]
    for room, state in lamps:
        calls = [call("lamp", room=room, on=STATES[state])]
        kinds[1] += [(asked.format(room, state), calls, ["done"], "Done.") for asked in LAMP]
    for (city, day), (room, state) in itertools.product(weather, lamps):
        sky, lamp = draw.choice(SKIES), call("lamp", room=room, on=STATES[state])
        calls = [call("weather", city=city, day=day), lamp]
        asked = BOTH.format(city, day, room, state)
        kinds[2].append((asked, calls, [sky, "done"], f"It is {sky}."))
    for greeting, city in itertools.product(GREETINGS, CITIES):
        kinds[3].append((f"{greeting} from {city}!", [], [], "Hello!"))
    return kinds


def write_dialogue(tasks: Iterable[Task]) -> dict[str, Any]:
    """Tasks as a record with tools."""
    messages: list[dict[str, Any]] = []
    for question, calls, results, answer in tasks:
        messages.append({"role": "user", "content": question})
        if calls:
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [{"role": "tool", "content": result} for result in results]
        messages.append({"role": "assistant", "content": answer})
    return {"mode": "fast", "now": "2026-03-02 09:15:00", "tools": TOOLS, "messages": messages}


def write_basics(task: Task) -> dict[str, Any]:
    """A task as a record without tools."""
    question, calls, _, _ = task
    answer = json.dumps([one["function"] for one in calls])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"mode": "fast", "messages": messages}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a file of records."""
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("tools", "basics", "eval"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dialogues", type=int, default=400)
    parser.add_argument("--held_out", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    kinds = list_tasks(draw)
    for tasks in kinds:
        draw.shuffle(tasks)
    num_each = arguments.held_out // len(kinds)
    held_out = [task for tasks in kinds for task in tasks[:num_each]]
    trained = [tasks[num_each:] for tasks in kinds]
    draw.shuffle(held_out)
    dialogues = [
        [draw.choice(tasks) for tasks in draw.choices(trained, SHARES, k=QUESTIONS)]
        for _ in range(arguments.dialogues)
    ]
    basics = [task for tasks in trained for task in tasks if task[1]]
    write_lines(arguments.tools, map(write_dialogue, dialogues))
    write_lines(arguments.basics, map(write_basics, basics))
    write_lines(arguments.eval, (write_dialogue([task]) for task in held_out))


if __name__ == "__main__":
    main()

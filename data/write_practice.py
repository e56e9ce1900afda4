"""Write the dialogues that the demo trains on: `python data/write_practice.py`.

Small sums, weekdays and lists, in English and Chinese, with and without thinking. They follow rules
that a tiny model finds in minutes. So the loss falls on held-out questions too, which have the same
words with other numbers and things. `tiny_train.jsonl` it could only learn by heart.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import orjson

HERE = Path(__file__).parent
PER_KIND = 150  # fewer where there are not as many questions
NUM_HELD_OUT = 48
SEED = 0

LEGS = {"cat": 4, "dog": 4, "horse": 4, "hen": 2, "duck": 2, "ant": 6, "bee": 6, "spider": 8}
LEGS_ZH = {"猫": 4, "狗": 4, "马": 4, "鸡": 2, "鸭": 2, "蚂蚁": 6, "蜜蜂": 6, "蜘蛛": 8}
GOODS = ("ticket", "book", "pen", "cup", "cake", "ball", "map", "lamp")
GOODS_ZH = ("票", "书", "笔", "杯子", "蛋糕", "球", "地图", "灯")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS_ZH = ("一", "二", "三", "四", "五", "六", "日")
FRUITS = ("apples", "pears", "grapes", "plums", "lemons", "bananas", "cherries", "peaches")
FRUITS_ZH = ("苹果", "梨", "葡萄", "李子", "柠檬", "香蕉", "樱桃", "桃子")
OTHERS = ("bread", "soap", "cheese", "rice", "milk", "salt", "paper", "butter")
OTHERS_ZH = ("面包", "肥皂", "奶酪", "米", "牛奶", "盐", "纸", "黄油")
PERSONS = ("She", "He", "Anna", "Tom", "My aunt", "Our neighbour")
PERSONS_ZH = ("她", "他", "安娜", "小李", "阿姨", "邻居")

Turn = tuple[str, str, str]  # question, thought (empty: answered at once), answer


def main() -> None:
    """Write both files."""
    random = Random(SEED)
    dialogues = [dialogue for kind in KINDS for dialogue in make_dialogues(kind, random)]
    random.shuffle(dialogues)
    parts = {"train": dialogues[NUM_HELD_OUT:], "eval": dialogues[:NUM_HELD_OUT]}
    for name, part in parts.items():
        lines = b"".join(orjson.dumps(dialogue) + b"\n" for dialogue in part)
        (HERE / f"practice_{name}.jsonl").write_bytes(lines)


def make_dialogues(kind: Callable[[Random], Turn], random: Random) -> list[dict[str, object]]:
    """Different questions of a kind, as records."""
    turns: dict[str, Turn] = {}
    for _ in range(3 * PER_KIND):
        turn = kind(random)
        turns.setdefault(turn[0], turn)
    return [
        {
            "id": f"{kind.__name__}-{number:03d}",
            "mode": "slow" if thought else "fast",
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant"}
                | ({"reasoning_content": thought} if thought else {})
                | {"content": answer},
            ],
        }
        for number, (question, thought, answer) in enumerate([*turns.values()][:PER_KIND])
    ]


def count_legs(random: Random) -> Turn:
    """A sum."""
    animal, number = random.choice([*LEGS]), random.randint(2, 9)
    each = LEGS[animal]
    return (
        f"How many legs do {number} {animal}s have in all?",
        f"Each {animal} has {each} legs. {number} × {each} = {number * each}.",
        f"{number * each} legs.",
    )


def count_legs_zh(random: Random) -> Turn:
    """The same in Chinese."""
    animal, number = random.choice([*LEGS_ZH]), random.randint(2, 9)
    each = LEGS_ZH[animal]
    return (
        f"{number}只{animal}一共有几条腿？",
        f"每只{animal}有{each}条腿，{number}×{each}={number * each}。",
        f"一共有{number * each}条腿。",
    )


def pay(random: Random) -> Turn:
    """Another sum."""
    thing, price, number = random.choice(GOODS), random.randint(2, 6), random.randint(2, 6)
    return (
        f"A {thing} costs {price} dollars. How much do {number} {thing}s cost?",
        f"Each {thing} is {price} dollars. {number} × {price} = {number * price}.",
        f"They cost {number * price} dollars.",
    )


def pay_zh(random: Random) -> Turn:
    """The same in Chinese."""
    thing, price, number = random.choice(GOODS_ZH), random.randint(2, 6), random.randint(2, 6)
    return (
        f"一份{thing}{price}元，买{number}份要多少钱？",
        f"每份{price}元，{number}×{price}={number * price}。",
        f"一共{number * price}元。",
    )


def count_days(random: Random) -> Turn:
    """A weekday, reached one by one."""
    path = walk_week(random, DAYS)
    return (
        f"Today is {path[0]}. What day is it in {len(path) - 1} days?",
        f"Counting on from {path[0]}: {', '.join(path[1:])}.",
        f"It is {path[-1]}.",
    )


def count_days_zh(random: Random) -> Turn:
    """The same in Chinese."""
    path = walk_week(random, DAYS_ZH)
    return (
        f"今天是星期{path[0]}，{len(path) - 1}天后是星期几？",
        f"从星期{path[0]}往后数：{'、'.join(path[1:])}。",
        f"{len(path) - 1}天后是星期{path[-1]}。",
    )


def find_fruits(random: Random) -> Turn:
    """An extraction."""
    first, second, third, last = things = go_shopping(random, FRUITS, OTHERS)
    return (
        f"List the fruits: {random.choice(PERSONS)} bought {first}, {second}, {third} and {last}.",
        "",
        "; ".join(thing for thing in things if thing in FRUITS),
    )


def find_fruits_zh(random: Random) -> Turn:
    """The same in Chinese."""
    first, second, third, last = things = go_shopping(random, FRUITS_ZH, OTHERS_ZH)
    return (
        f"抽取水果：{random.choice(PERSONS_ZH)}买了{first}、{second}、{third}和{last}。",
        "",
        "；".join(thing for thing in things if thing in FRUITS_ZH),
    )


def name_next_day(random: Random) -> Turn:
    """A fact about the week."""
    today, tomorrow = walk_week(random, DAYS, days=1)
    return (
        f"{random.choice(PERSONS)} came on {today} and left the next day. When was that?",
        "",
        f"On {tomorrow}.",
    )


def name_next_day_zh(random: Random) -> Turn:
    """The same in Chinese."""
    today, tomorrow = walk_week(random, DAYS_ZH, days=1)
    person = random.choice(PERSONS_ZH)
    return f"{person}星期{today}来，第二天走。哪天走的？", "", f"星期{tomorrow}。"


def walk_week(random: Random, days_of_week: Sequence[str], days: int | None = None) -> list[str]:
    """A day and those that follow it."""
    first, length = random.randrange(7), days or random.randint(1, 6)
    return [days_of_week[(first + step) % 7] for step in range(length + 1)]


def go_shopping(random: Random, fruits: Sequence[str], others: Sequence[str]) -> list[str]:
    """Two fruits and two other things, in any order."""
    things = [*random.sample(fruits, 2), *random.sample(others, 2)]
    random.shuffle(things)
    return things


KINDS = (
    *(find_fruits, count_legs, find_fruits_zh, count_legs_zh, name_next_day),
    *(pay, name_next_day_zh, pay_zh, count_days, count_days_zh),
)

if __name__ == "__main__":
    main()

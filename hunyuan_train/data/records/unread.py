"""Fields that training does not read: what a record may mean by one is refused by name.

A record says things about itself, such as its source or its score, under names that are known; they
are noted. Any other field may be a part of the dialogue, or say how to train on it: `context`,
`persona`, `images`, `should_train`. It is refused, unless all that it says stands in the messages.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.flags import TEMPLATE_FIELDS
from hunyuan_train.data.records.forms import THOUGHT_FIELDS
from hunyuan_train.data.records.turns import NOTHING

Record = dict[str, Any]

# Names of what is about a record and not in it, by their letters alone.
_ABOUT = """
id ids uid uuid guid idx index from rowid key hash md5 sha1 sha256 unnamed0 indexlevel0
source sources sourcedataset datasource origin provenance dataset datasetname subset split
config partition fold shard batch repo reponame website domain url urls uri link doi
category categories subcategory task tasks tasktype tasktypes taskname kind type class
tag tags keyword keywords topic topics subtopic subject subjects field genre intent skill skills
title name lang language languages langdetect locale country region license licence copyright
difficulty level grade score scores quality rating ratings reward rank votes upvotes likes views
toxic toxicity redacted moderation openaimoderation detoxifymoderation detoxify
date time timestamp datetime year created updated createdat updatedat createdtime updatedtime
author authors annotator annotators creator editor reviewer worker contributor humanverified
model models modelname generator generatormodel engine provider answerfrom usedintraining
version revision status state deleted synthetic skippromptformatting
datasetversion qid docid llamaguard2 instructreward rewardmodel genconfig geninputconfigs
finishreasons generationconfig emojis
turn round tokens usage cost latency duration temperature topp seed maxtokens finishreason
stopreason fingerprint systemfingerprint object length len size hashedip header avatarurl
meta metadata 编号 序号 来源 数据来源 类别 分类 类型 领域 语言 难度 日期 时间 标签 任务 任务类型
"""
_ABOUT_NAMES = frozenset(_ABOUT.split())
# Options of a request and what trainers of other losses read: about the record where they are a
# number, a flag or one of these words, which no template writes.
_OPTIONS = """
margin paralleltoolcalls toolchoice functioncall stream store n topk minp logprobs toplogprobs
presencepenalty frequencypenalty repetitionpenalty maxcompletiontokens scorechosen scorerejected
"""
_OPTION_NAMES = frozenset(_OPTIONS.split())
_OPTION_WORDS = ("auto", "none", "required", "any")
# A longer name is about the record, too, where it begins or ends with one of these words…
_FIRST_WORDS = {"num", "created", "updated"}
_LAST = """
id ids uid uuid guid identifier idx hash md5 sha1 sha256 url urls uri date timestamp datetime
score scores rating ratings count length len lang language category categories type types
difficulty quality generator source similarity distance
"""
_LAST_WORDS = frozenset(_LAST.split())
# … unless it speaks of the loss, of calls or of a medium.
_NOT_ABOUT = re.compile("loss|mask|train|weight|label|learn|call|tool|function")
_MEDIUM = re.compile(
    "image|img|picture|photo|screenshot|audio|video|attachment|pixel|media"
    "|图片|图像|音频|视频|(input)?files?(url|path|data|bytes)s?$"
)
_FIX = "move it into the messages or remove it, or choose unread_text=note to train without it"
_IDENTITIES = ("role", "from", "type", "id")  # of a turn that stands in the messages, too


def report_unread(
    fields: Record, place: str, known: Iterable[str], messages: list[Any], problems: list[Problem]
) -> None:
    """Say which fields of a record or of a message are not read.

    Args:
        fields: those that are left when all that is read is taken away.
        place: what stands before their names: "" or `messages[3].`.
        known: the names that are read, in case one is misspelled.
        messages: those of the record: what stands in them is not lost.
    """
    spelled = {_spell(name): name for name in known}
    noted: Record = {}
    for name, value in fields.items():
        if value in NOTHING:
            continue
        meant = spelled.get(_spell(name))
        if meant and meant not in fields and meant != name:
            reason, fix = f"{name} is not read", f"did you mean {meant}?"
            problems.append(Problem("unread_text", f"{place}{name}", reason, fix))
        elif not _is_about(name, value) and _holds_more(value, messages):
            reason = "a field that training does not read"
            if _MEDIUM.search(_spell(name)):
                reason = "a medium, and this model reads text only"
            problems.append(Problem("unread_text", f"{place}{_show(name)}", reason, _FIX))
        else:
            noted[name] = value
    note_unused(noted, place, problems)


def note_unused(fields: Iterable[str], place: str, problems: list[Problem]) -> None:
    """Name fields that are nothing to learn from."""
    if names := ", ".join(f"{place}{_show(field)}" for field in fields):
        fix = "remove it, or fix its name"
        problems.append(Problem("unused_field", names, "not read by training", fix))


def _is_about(name: str, value: object) -> bool:
    """Whether a field is about its record, by its name."""
    spelled = _spell(name)
    if spelled in _ABOUT_NAMES:
        return True
    if spelled in _OPTION_NAMES and (value in _OPTION_WORDS or isinstance(value, int | float)):
        return True
    if name in TEMPLATE_FIELDS:  # options of a template; a text among them would be lost
        return not any(isinstance(leaf, str) and leaf.strip() for leaf in _walk(value))
    if _MEDIUM.search(spelled) or _NOT_ABOUT.search(spelled):
        return False
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return words[0] in _FIRST_WORDS or words[-1] in _LAST_WORDS


def is_about_a_record(name: str) -> bool:
    """Whether a field of this name says something about its record, and is no part of it."""
    return _spell(name) in _ABOUT_NAMES


def _holds_more(value: object, messages: list[Any]) -> bool:
    """Whether a value says something that the messages do not."""
    said = {_trim(leaf) for message in messages for leaf in _walk(_said_by(message))}
    return any(_trim(leaf) not in ("", *said) for leaf in _walk(value))


def _said_by(message: object) -> object:
    """What training reads of a message, as its author wrote it."""
    if not isinstance(message, dict):
        return ()
    is_answer = message.get("role") == "assistant"
    return [message.get(field) for field in ("content", *(THOUGHT_FIELDS if is_answer else ()))]


def _trim(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _walk(value: object) -> Iterator[Any]:
    """The texts, numbers and flags in a value."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _IDENTITIES:
                yield from _walk(item)
    elif value is not None:
        yield value


def _show(name: str) -> str:
    return name if name.strip() else f'"{name}"'  # a key of no letters is a key


def _spell(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

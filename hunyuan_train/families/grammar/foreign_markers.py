# ruff: noqa: RUF001, RUF003  # the marks of others in other brackets
"""Marks that other models and agents write around thoughts, answers and calls.

Where an answer holds one, a model would be taught to write what no server of its own reads. A
grammar says which marks are its own. What a text quotes as code is talked about and left alone.
"""

import re
from collections.abc import Callable
from unicodedata import normalize

from hunyuan_train.families.grammar.marks import holds_any
from hunyuan_train.families.grammar.quoted_code import mask_code

_MAX_NAMED = 3

# What others call the parts of an answer, in lower case and without underscores.
_NAME = re.compile(
    r"(?:.*(?:think|thinking|thoughts?|reason|reasoning)(?:process|steps?|content|block|trace)?"
    r"|.*(?:reflection|reflect|invoke)|tools?|analysis|思考(?:过程)?|推理(?:过程)?|思维链|回答|答案"
    r"|.*(?:tool|function)(?:calls?|use|code|outputs?|results?|responses?)"
    r"|scratchpad|rationale|(?:inner)?monologue|cot|chainofthoughts?|observation"
    r"|(?:final)?answer|finalresponse)"
)
# Angle brackets, their look-alikes, and the ways in which HTML, URLs and JSON escape them.
_OPEN = r"(?:[<＜﹤‹〈⟨《«◁【]|&(?:amp;)*(?:lt|LT|#0*60|#[xX]0*3[cC]);|\\+u003[cC]|%3[cC])"
_CLOSE = r"(?:[>＞﹥›〉⟩》»▷】]|&(?:amp;)*(?:gt|GT|#0*62|#[xX]0*3[eE]);|\\+u003[eE]|%3[eE])"
_BLANK = "[\\s\u200b\u2060\ufeff]*"
# <thinking>, </reasoning>, <tool_call id="1">, ＜think＞, &lt;think&gt;, < think >, ◁think▷
_NAMED = re.compile(
    rf"{_OPEN}{_BLANK}\\?[/／]?{_BLANK}([\w:.-]{{2,40}}?)(?:\s[^<>\n]{{0,80}})?{_BLANK}[/／\\]?{_CLOSE}"
)
_PATTERNS = (
    # <|begin_of_thought|>, <|channel|>, <|im_end|>, <｜tool▁calls▁begin｜>, <|channel>, <channel|>
    r"[<＜][|｜][^<>|｜\s]{1,40}[|｜]?[>＞]|<[A-Za-z_]{2,40}[|｜]>",
    # <function=get_weather>, <parameter=city>, <invoke name="f">, <function name="f">
    r"<(?:function|parameter)=[^<>\n]{1,80}>|<(?:function|invoke|parameter)\s+name=[^<>\n]{1,80}>",
    # [THINK], [TOOL_CALLS], [/INST], and the closing mark of one in small letters
    r"\[/?(?:THINK|THINKING|THOUGHT|REASONING|TOOL_CALLS?|TOOL_RESULTS?|AVAILABLE_TOOLS|INST"
    r"|ARGS|ANSWER|SYSTEM_PROMPT)\]|\[/(?:think|thinking|thoughts?|reasoning|tool_calls?)\]",
    r"<</?SYS>>|</?(?:start|end)_of_turn>|<unused\d+>|✿(?:FUNCTION|ARGS|RESULT|RETURN)✿",
    # <｜DSML｜invoke name="f">
    r"[<＜][/／]?[|｜][A-Z]{2,40}[|｜](?=[a-z])",
    r"(?:</s>|<(?:eos|eot|eom|eoa|eoh|eod|sep|pad|unk|endoftext|end_of_text)>)+(?=\s*\Z)",
)
_FIXED = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS))
_FIRST = "<＜﹤‹〈⟨《«◁【&\\%[✿"  # what any of them begins with
_FIRST_ASCII = "".join(filter(str.isascii, _FIRST))
_START = re.compile(f"[{re.escape(_FIRST)}]")

# ReAct: a line for each step. One label alone is prose.
_STEP = re.compile(
    r"[ \t*#>-]{0,6}(Thoughts?|Action(?: ?Input)?|Observation|(?:Final )?Answer"
    r"|思考|行动(?:输入)?|观察|最终答案)[*_]{0,3}\s?[:：]",
    re.IGNORECASE,
)
_STEP_HINTS = ("thought", "action", "思考", "行动")  # one of them is in every pair
_STEP_PAIRS = (
    {"action", "action input"},
    {"thought", "action"},
    {"action", "observation"},
    {"thought", "observation"},
    {"thought", "final answer"},
    {"thought", "answer"},
    {"思考", "行动"},
    {"行动", "行动输入"},
    {"思考", "最终答案"},
)
# The end of a text, written where an answer ends; elsewhere it is talked about.
_END = re.compile(r"<\|\w{1,40}\|>(?=\s*\Z)")
_WORDED = re.compile(  # of Granite; of Functionary
    r"Here(?: is|'s) my thought process:(?=.*Here(?: is|'s) my response:)|^>>>[\w.]+(?=\s*\n)",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_HEADED = re.compile(  # ## Thinking ... ## Final Response
    r"^#{1,4}\s*(?:Thinking|Thoughts?|Reasoning)\b.*^#{1,4}\s*Final (?:Response|Answer)\b",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)

_OPENS_TURN = re.compile(  # behind what may open the whole text
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|\[gMASK\]<sop>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start\|>|<\|turn>|\[INST\]"
    r"|<\|(?:system|user|assistant|User|Assistant)\|>|<[｜|](?:User|Assistant)[｜|]>"
    r"|###? ?(?:Instruction|Human|User):)"
)


def find_opened_turn(text: str) -> str:
    """The mark with which a text opens the turn of a dialogue that is already rendered; or ""."""
    match = _OPENS_TURN.match(text)
    return match[1] if match else ""


def find_foreign_markers(text: str, is_own: Callable[[str], bool]) -> list[str]:
    """The first few marks of others in an answer or its thoughts, each once."""
    masked = mask_code(text)
    found: dict[str, None] = {}
    first = _FIRST_ASCII if masked.isascii() else _FIRST  # most texts hold none of these
    for start in _START.finditer(masked) if holds_any(masked, first) else ():
        marker = _match_marker(masked, start.start())
        if marker and not is_own(marker):
            found[marker] = None
            if len(found) == _MAX_NAMED:
                return list(found)
    if "<|" in masked and (end := _END.search(masked)):
        found[end[0]] = None
    if words := _find_words(masked):
        found[words[0]] = None
    found |= dict.fromkeys(_find_steps(masked))
    return list(found)


def _match_marker(text: str, start: int) -> str:
    """The mark that begins here; "" where none does."""
    named = _NAMED.match(text, start)
    if named:
        name = normalize("NFKC", named[1]).lower()  # letters may be full-width, too
        if _NAME.fullmatch(name.replace("_", "").replace("-", "")):
            return named[0]
    fixed = _FIXED.match(text, start)
    return fixed[0] if fixed else ""


def _find_words(text: str) -> re.Match[str] | None:
    return _WORDED.search(text) if ">>>" in text or "my thought process" in text else None


def _find_steps(text: str) -> list[str]:
    """The labels of an agent's steps, or the heading of thoughts that an answer follows."""
    lower_case = text.lower()
    if holds_any(lower_case, _STEP_HINTS):
        steps = filter(None, map(_STEP.match, text.splitlines()))
        labels = {_name_step(step[1]): step[1] for step in steps}
        for pair in _STEP_PAIRS:
            if pair <= labels.keys():
                return [f"{labels[name]}:" for name in sorted(pair)]
    headed = _HEADED.search(text) if "#" in text and "final " in lower_case else None
    return [headed[0].partition("\n")[0]] if headed else []


def _name_step(label: str) -> str:
    name = label.lower().replace("actioninput", "action input")
    return "thought" if name == "thoughts" else name

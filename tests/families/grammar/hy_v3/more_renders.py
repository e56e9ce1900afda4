"""Conversations beside those of `golden_file`, with hashes of their real renders.

The hashes are the first 16 digits of `render_sha256` in docs/hy3/HY3_TEMPLATE_VALIDATION.json of
github.com/Aleks-Che/Strata at 51125bd, which has them from the template in Hy3's own GGUF file
(SHA-256 7fc351fe...), by two implementations of Jinja.
"""

from typing import Any

USER = {"role": "user", "content": "Привет, 你好!"}
ANSWER = {"role": "assistant", "content": "Ответ", "reasoning_content": "Думаю"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "Погода", "parameters": CITY}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {
    **{"city": "Екатеринбург", "n": 2, "yes": True, "empty": None},
    **{"nested": {"a": [1, "中"]}, "lines": "a\nb"},
}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}},
    {"id": "c2", "type": "function", "function": {"name": "other", "arguments": {"x": 0}}},
]
CALL = {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}
TWO_CALLS = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": '{"temperature":5}'}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Один"}, " two"]}

# A record; hashes for no_think, low and high, without a prompt for an answer and with one.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "preserved": (
        {"messages": [USER, ANSWER, USER], "preserved_thinking": True},
        "c0ab58b1cb8cb78f b10408b2f98d82b3 3a984be319c0eefb",
        "a2f316d082e0e14c 30c62beed56d4ae9 cd2d93545cc27579",
    ),
    "text parts": (
        {"messages": [PARTS]},
        "42271f3d186d96d9 ac82e8d1ce830346 bd17e53ba0a8477d",
        "accbd932bf31672f bc60a35cb0bb107d accceb7073d1db8d",
    ),
    "a question after a result": (
        {"messages": [USER, CALL, RESULT, USER], "tools": TOOLS},
        "a5a87e3cca3f8aad 40f5293c2ae65e9c b5f069f0a6cdde50",
        "16a81ff2b95ade7c d2852dac58fdb9f2 6e6b8721d8d9f429",
    ),
    "two results": (
        {"messages": [USER, CALL, RESULT, {"role": "tool", "content": "second"}], "tools": TOOLS},
        "e780e4b20279a9d3 1181f51a65a1bfb7 46fe402b49815deb",
        "c2e0943ffb13591e ff04cd826af36883 5b029e5201d345cd",
    ),
    "two calls": (
        {"messages": [USER, TWO_CALLS], "tools": TOOLS},
        "a2850686086cdfd4 f680b4ba9f69294a 788ffbcb318a824e",
        "a2850686086cdfd4 f680b4ba9f69294a 788ffbcb318a824e",
    ),
}

"""The layout of template.py as a Jinja chat template, for servers that hold an exported model.

It renders what a client sends, as the model's own template does: messages as they are, earlier
answers bare because clients send them so, the last turn open. A last answer whose thoughts are
given is written as the target that it was in training. llama.cpp asks for one to find out whether a
model thinks and in which tags; the model's own template drops thoughts, and it takes every request
for one without thinking then.

Only constructs that llama.cpp's own Jinja has and computes alike are used: it counts characters of
a text in bytes, for example.
"""

from hunyuan_train.families.grammar.hunyuan_a13b.tags import ANSWER_CLOSE, THINK_CLOSE, THINK_OPEN
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import EOS, START, SYSTEM_END, USER_END
from hunyuan_train.families.grammar.hunyuan_a13b.tools import (
    ASSISTANT_LABEL,
    USER_LABEL,
    WEEKDAYS,
    write_tools_prompt,
)

_TOOLS_MARK = "TOOLS-GO-HERE"
_SYSTEM_MARK = "SYSTEM-GOES-HERE"
_NOW, _NOW_MARK = "2024-01-01 00:00:00", "2024-01-01 00:00:00 星期一"


def _quote(text: str) -> str:
    """A string of Jinja."""
    return "'" + text.replace("\n", "\\n") + "'"


def _tools_prompt(system: str | None) -> str:
    """The tools prompt with expressions where a dialogue's own text goes."""
    prompt = write_tools_prompt([_TOOLS_MARK], _NOW, system=system)
    prompt = prompt.replace(f'["{_TOOLS_MARK}"]', "{{ tools | tojson }}")
    prompt = prompt.replace(_SYSTEM_MARK, "{{ content }}")
    return prompt.replace(_NOW_MARK, "{{ now }}")


CHAT_TEMPLATE = f"""\
{{%- if tools %}}
    {{%- set weekday = {list(WEEKDAYS)}[strftime_now('%u') | int - 1] %}}
    {{%- set now = strftime_now('%Y-%m-%d %H:%M:%S') + ' 星期' + weekday %}}
{{%- endif %}}
{{%- for message in messages %}}
    {{%- set content = message.content or '' %}}
    {{%- if tools and loop.first %}}
        {{%- if message.role == 'system' %}}
            {{{{- '{START}' }}}}{_tools_prompt(_SYSTEM_MARK)}{{{{ '{SYSTEM_END}' }}}}
        {{%- else %}}
            {{{{- '{START}' }}}}{_tools_prompt(None)}{{{{ '{SYSTEM_END}' }}}}
        {{%- endif %}}
    {{%- elif message.role == 'system' %}}
        {{{{- '{START}' + content + '{SYSTEM_END}' }}}}
    {{%- endif %}}
    {{%- if message.role == 'user' and tools %}}
        {{{{- '{USER_LABEL}' + content + '{USER_END}' }}}}
    {{%- elif message.role == 'user' %}}
        {{{{- ('' if loop.index0 == 1 else '{START}') + content + '{USER_END}' }}}}
    {{%- elif message.role == 'tool' and tools %}}
        {{{{- '<tool_response>' + content + '</tool_response>{USER_END}' }}}}
    {{%- elif message.role == 'tool' %}}
        {{{{- content + '{USER_END}' }}}}
    {{%- elif message.role == 'assistant' %}}
        {{%- set is_target = loop.last and message.reasoning_content is string %}}
        {{%- if is_target %}}
            {{{{- {_quote(THINK_OPEN)} + message.reasoning_content + {_quote(THINK_CLOSE)} }}}}
        {{%- endif %}}
        {{%- if tools and message.tool_calls %}}
            {{{{- content + '<tool_calls>[' }}}}
            {{%- for call in message.tool_calls %}}
                {{%- set arguments = call.function.arguments %}}
                {{{{- '{{"name": "' + call.function.name + '", "arguments": ' }}}}
                {{{{- (arguments if arguments is string else arguments | tojson) + '}}' }}}}
                {{{{- '' if loop.last else ', ' }}}}
            {{%- endfor %}}
            {{{{- ']</tool_calls>' }}}}
        {{%- else %}}
            {{{{- ('{ASSISTANT_LABEL}' if tools else '') + content }}}}
        {{%- endif %}}
        {{{{- ({_quote(ANSWER_CLOSE)} if is_target else '') + '{EOS}' }}}}
    {{%- endif %}}
{{%- endfor %}}
{{%- if enable_thinking is defined and not enable_thinking %}}
    {{{{- '<think>\\n\\n</think>\\n' }}}}
{{%- endif %}}
"""

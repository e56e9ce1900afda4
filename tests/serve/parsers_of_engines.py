"""Runs in the environment of vLLM: what its parsers and SGLang's make of the answers on stdin.

In: one JSON object {"tokenizer": FOLDER, "answers": [[text, has_tools], ...], "streamed": [text]}.
Out: one object behind a mark, {"whole": [{"vllm": [reasoning, content, calls], "sglang": ...}],
"streamed": [[content, calls]]}. What is streamed comes token by token to vLLM's parser of calls.
"""

import json
import sys
from typing import Any

MARK = "PARSED:"
HALF_CHARACTER = "\ufffd"


def main() -> None:
    from sglang.srt.function_call.hunyuan_detector import HunyuanDetector
    from sglang.srt.parser.reasoning_parser import ReasoningParser
    from transformers import AutoTokenizer
    from vllm.reasoning.hunyuan_a13b_reasoning_parser import HunyuanA13BReasoningParser
    from vllm.tool_parsers.hunyuan_a13b_tool_parser import HunyuanA13BToolParser

    given = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    rows = []
    for text, has_tools in given["answers"]:
        reasoning, content = HunyuanA13BReasoningParser(tokenizer).extract_reasoning(text, None)
        calls = []
        if has_tools and content:
            found = HunyuanA13BToolParser(tokenizer).extract_tool_calls(content, None)
            calls = [[one.function.name, one.function.arguments] for one in found.tool_calls]
            content = found.content
        thoughts, rest = ReasoningParser(model_type="hunyuan").parse_non_stream(text)
        others = []
        if has_tools:
            detected = HunyuanDetector().detect_and_parse(rest, [])
            rest = detected.normal_text
            others = [[one.name, one.parameters] for one in detected.calls]
        rows.append({"vllm": [reasoning, content, calls], "sglang": [thoughts, rest, others]})
    streamed = [
        stream(HunyuanA13BToolParser(tokenizer), tokenizer, one) for one in given["streamed"]
    ]
    sys.stdout.write(MARK + json.dumps({"whole": rows, "streamed": streamed}) + "\n")


def stream(parser: Any, tokenizer: Any, text: str) -> list[Any]:
    """The content and the calls that a client puts together from a stream."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    before, num_before, content, calls = "", 0, "", []
    for num_tokens in range(1, len(ids) + 1):
        now = tokenizer.decode(ids[:num_tokens])
        if now.endswith(HALF_CHARACTER):  # which the server keeps until it is whole
            continue
        new_ids = ids[num_before:num_tokens]
        parts = before, now, now[len(before) :], ids[:num_before], ids[:num_tokens], new_ids
        delta = parser.extract_tool_calls_streaming(*parts, request=None)
        before, num_before = now, num_tokens
        content += (delta.content or "") if delta else ""
        for one in delta.tool_calls if delta else []:
            calls += [["", ""]] * (one.index + 1 - len(calls))
            name, arguments = calls[one.index]
            added = one.function
            calls[one.index] = [name + (added.name or ""), arguments + (added.arguments or "")]
    return [content, calls]


if __name__ == "__main__":
    main()

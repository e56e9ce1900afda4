"""Runs in the environment of vLLM: what its parsers and SGLang's make of the answers on stdin.

In: one JSON object {"tokenizer": FOLDER, "answers": [[text, has_tools], ...]}. Out: one list of
{"vllm": [reasoning, content, calls], "sglang": ...} behind a line that says so.
"""

import json
import sys

MARK = "PARSED:"


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
    sys.stdout.write(MARK + json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()

"""A whole run on the vendor's own vocabulary and example data."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import parse_output
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import START, SYSTEM_END, USER_END
from tests.reference import reference_file


@pytest.mark.slow
def test_a_small_model_learns_the_vendors_example_data(run_train, tmp_path: Path) -> None:
    data, vocabulary = reference_file("car_train.jsonl"), reference_file("hy.tiktoken")
    output_dir = tmp_path / "car"
    finished = run_train(
        *("--recipe", "tiny", "--output_dir", str(output_dir), "--max_steps", "100"),
        *("--tokenizer_name_or_path", str(vocabulary.parent), "--train_data_file", str(data)),
        *("--eval_data_file", "none", "--eval_steps", "0", "--learning_rate", "5e-3"),
        *("--logging_steps", "1"),
        timeout=1800,
    )
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(11.8, abs=0.3)
    assert steps[-1]["loss"] < 2.0
    tokenizer = load_tokenizer(vocabulary.parent)
    model = AutoModelForCausalLM.from_pretrained(output_dir / "export")
    first = json.loads(data.read_text(encoding="utf-8").splitlines()[0])["messages"]
    prompt = [
        tokenizer.special_id(START),
        *tokenizer.encode(first[0]["content"]),
        tokenizer.special_id(SYSTEM_END),
        *tokenizer.encode(first[1]["content"]),
        tokenizer.special_id(USER_END),
    ]
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    generated = output[0, len(prompt) :].tolist()
    answer = tokenizer.decode([token for token in generated if token not in tokenizer.stop_ids])
    parsed = parse_output(answer)
    assert parsed.is_well_formed, answer
    assert parsed.reasoning_content is None

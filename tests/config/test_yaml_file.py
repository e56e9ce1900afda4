"""A file of settings is read as it is written, and within bounds."""

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.config.load import load_config
from hunyuan_train.config.yaml_file import load_yaml_file
from hunyuan_train.errors import ConfigError


def bomb(levels):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels):
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines)


def chain(levels):
    return "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(22), "more than 5,000 values once its aliases are followed"),
        (merge_bomb(22), "nested more than 16 levels deep"),
        (chain(40), "nested more than 16 levels deep"),
        ("[" * 50_000, "nested more than 16 levels deep"),
        ("{a: " * 20_000, "nested more than 16 levels deep"),
        ("- " * 20_000, "nested more than 16 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(300)), "nested more than 16 levels deep"),
        ("? " * 5_000, "nested more than 16 levels deep"),
        ("a: &a [*a]", r"\*a stands for nothing that ends before it"),
        ("a: *b", r"run.yaml:1: \*b stands for nothing"),
        ("- x\n" * 6_000, "more than 5,000 values"),
        ("a: " + "x" * 300_000, "it has more than 200,000 bytes"),
        ("train: {seed: !!int 3}", "the tag .*int is not taken"),
        ("train: {seed: !!python/name:os.system x}", "the tag .* is not taken"),
        ("train: !!set {seed}", "the tag .*set is not taken"),
        ("a: [1, 2", "is not YAML"),
        ("a: '\x00'", "is not YAML"),
        ("? [a, b]\n: c", "is not YAML: .*unhashable"),
    ],
)
def test_what_would_grow_or_never_end_is_refused_in_under_a_second(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml_file(path)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['"\\e[31mx": {a: 1}', '"\\e[31mx": 1', 'train: {"\\e[31mx": 1}', '"\\ex": 1\n"\\ex": 2'],
)
def test_no_escape_sequence_reaches_the_terminal(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config([str(path)])
    assert "\x1b" not in str(caught.value)


def test_a_few_aliases_are_followed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("logs: &all {run_name: x}\nlora: {<<: *all, lora_rank: 8}\n")
    assert load_yaml_file(path) == {
        "logs": {"run_name": "x"},
        "lora": {"run_name": "x", "lora_rank": 8},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1e-4", 1e-4), ("1:30", None), ("0x10", None), ("2026-13-45", None), ("7", 7)],
)
def test_a_number_is_what_it_looks_like(tmp_path, text, value):
    """In YAML 1.1, 010 is eight, 1:30 ninety, and 2026-13-45 ends the reading."""
    path = tmp_path / "run.yaml"
    path.write_text(f"guardian: {{router_dead_share: 0.5}}\noptimizer: {{weight_decay: {text}}}\n")
    if value is None:
        with pytest.raises(ConfigError, match=f"weight_decay is '{text}'; it takes a number"):
            load_config([str(path)])
    else:
        assert load_config([str(path)]).optimizer.weight_decay == value


def test_a_time_needs_no_quotes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  now: 2026-03-02 09:15:00\n")
    assert load_config([str(path)]).data.now == "2026-03-02 09:15:00"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xe9", b"\x80"])
def test_bytes_that_are_no_text_are_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not YAML"):
        load_yaml_file(path)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(list("abx019 :-[]{}&*!?,'\"#|>%@`\n\t.~=<")), max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with suppress(ConfigError):
        load_config([str(path)])

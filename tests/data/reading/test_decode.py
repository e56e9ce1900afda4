import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.data.reading.decode import decode_record

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def _decode(raw):
    problems = []
    value = decode_record(raw if isinstance(raw, bytes) else raw.encode(), problems)
    return value, [(problem.kind, problem.reason) for problem in problems]


@given(value=json_values, is_ascii=st.booleans(), indent=st.none() | st.just(1))
def test_values_are_read_as_they_are(value, is_ascii, indent):
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert _decode(text.encode("utf-8", "surrogatepass")) == (value, [])


@pytest.mark.parametrize(
    "raw",
    [
        '{"a": 1, "a": 2}',
        '{"a" : 1, "a" : 2}',
        '{"m": [{"role": "user", "role": "user", "content": "say \\":"}]}',
        '{"a": "x\\\\", "b\\\\": 1, "b\\\\": 2}',
        '{"\\u0022": 1, "\\u0022": 2}',
    ],
)
def test_a_key_given_twice_is_found(raw):
    value, [(kind, reason)] = _decode(raw)
    assert value is None
    assert kind == "duplicate_key"
    assert "is given twice" in reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_numbers_that_are_not_json_are_refused(number):
    reason = f"{number} is not a number JSON can hold"
    assert _decode(f'{{"a": {number}}}') == (None, [("json", reason)])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"a": "b', "ends too early, column 7"),
        ('{"a": [1, 2', "ends too early, column 12"),
        ("{'a': 1}", "column 2"),
        ('{"a": 1} trailing', "column 10"),
        ('{"a": "tab\there"}', "control character"),
    ],
)
def test_broken_json_is_refused_with_its_column(raw, reason):
    value, [(kind, said)] = _decode(raw)
    assert (value, kind) == (None, "json")
    assert reason in said


@pytest.mark.parametrize(
    ("encoding", "text", "guess"),
    [
        ("gb18030", "请提取", "GB18030"),
        ("gbk", "今天天气很好、我们去公园吧。", "GB18030"),
        ("big5", "請問台北在哪裡。今天天氣很好。", "Big5"),
        ("shift_jis", "今日はいい天気ですね。", "Shift-JIS"),
        ("shift_jis", "データ", "Shift-JIS"),
        ("euc_jp", "今日はいい天気ですね。", "EUC-JP"),
        ("utf-16", "请提取", "UTF-16"),
        ("utf-32", "请提取", "UTF-32"),
        ("latin-1", "é", "Latin-1"),
        ("latin-1", "déjà vu à l'été", "Latin-1"),
        ("cp1252", "“so”", "Windows-1252"),
    ],
)
def test_other_encodings_are_named_with_the_byte(encoding, text, guess):
    value, [(kind, reason)] = _decode(f'{{"a": "{text}"}}'.encode(encoding))
    assert (value, kind) == (None, "encoding")
    assert guess in reason
    assert "byte " in reason


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["b", "请 \u0100a"])
def test_wide_encodings_without_a_mark_are_named(encoding, text):
    _, [(kind, reason)] = _decode(f'{{"a": "{text}"}}'.encode(encoding))
    assert kind == "encoding"
    assert f"looks like {encoding[:6].upper()}" in reason


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept():
    value, problems = _decode(rb'{"a": "x\ud83d", "b": "\ud83d\ude00"}')
    assert value == {"a": "x\N{REPLACEMENT CHARACTER}", "b": "\N{GRINNING FACE}"}
    assert [kind for kind, _ in problems] == ["surrogate"]


@pytest.mark.parametrize("number", [10**29 + 1, -(2**63) - 1, 2**64, 2**64 - 1, 2**53 + 1])
def test_long_integers_are_exact(number):
    assert _decode(f'{{"a": [{number}]}}') == ({"a": [number]}, [])


def test_large_floats_are_floats():
    assert _decode('{"a": 1e300}') == ({"a": 1e300}, [])


def test_nul_and_line_separators_inside_strings_are_kept():
    assert _decode('{"a": "x\\u0000y\N{LINE SEPARATOR}z\x85"}')[0] == {"a": "x\0y\u2028z\x85"}


def test_nesting_beyond_reason_is_refused():
    value, [(kind, _)] = _decode("[" * 100_000 + "]" * 100_000)
    assert (value, kind) == (None, "json")

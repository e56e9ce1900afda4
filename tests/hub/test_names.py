import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.names import RemoteName, parse_data_name, parse_model_name

A13B = "tencent/Hunyuan-A13B-Instruct"


@pytest.mark.parametrize(
    ("text", "hub", "expected"),
    [
        (A13B, "huggingface", ("huggingface", A13B, None)),
        (A13B, "modelscope", ("modelscope", "Tencent-Hunyuan/Hunyuan-A13B-Instruct", None)),
        (f"hf:{A13B}@v1", "modelscope", ("huggingface", A13B, "v1")),
        ("modelscope:me/my-model", "huggingface", ("modelscope", "me/my-model", None)),
    ],
)
def test_a_model_is_named_on_a_hub(text, hub, expected):
    name = parse_model_name(text, hub=hub)
    assert (name.hub, name.repo, name.revision) == expected


@pytest.mark.parametrize("text", ["tiny", "/models/x", "./a/b", "../a/b", "a/b/c", "~/a", "a b/c"])
def test_a_path_is_no_name(text):
    assert parse_model_name(text, hub="huggingface") is None


def test_what_is_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert parse_model_name("models/mispelt", hub="huggingface") is None
    assert parse_model_name("hf:models/mispelt", hub="huggingface") is not None


def test_half_a_name_is_refused():
    with pytest.raises(ConfigError, match="written hf:OWNER/NAME"):
        parse_model_name("hf:Hunyuan", hub="huggingface")
    with pytest.raises(ConfigError, match="no name of a data set on a hub"):
        parse_data_name("hf:a/b/c/d")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:me/talk", {"repo": "me/talk"}),
        ("hf:squad", {"repo": "squad"}),
        ("hf:me/talk:train", {"repo": "me/talk", "split": "train"}),
        ("hf:me/talk:train:2", {"repo": "me/talk", "split": "train", "weight": "2"}),
        ("hf:me/talk:0.5", {"repo": "me/talk", "weight": "0.5"}),
        ("hf:me/talk/zh@v2:test", {"subset": "zh", "revision": "v2", "split": "test"}),
        ("modelscope:me/talk", {"hub": "modelscope"}),
    ],
)
def test_a_data_set_is_named_with_split_and_weight(text, parts):
    name = parse_data_name(text)
    assert {part: getattr(name, part) for part in parts} == parts


def test_other_words_are_paths():
    assert parse_data_name("a.jsonl:2") is None
    assert parse_data_name("/data/talk") is None


def test_revisions_and_splits_are_kept_apart(tmp_path):
    names = ["hf:a/b", "hf:a/b@v1", "hf:a/b:test", "hf:a/b/zh:test", "modelscope:a/b"]
    folders = [parse_data_name(name).folder(tmp_path) for name in names]
    assert len(set(folders)) == len(names)
    assert isinstance(parse_data_name(names[0]), RemoteName)

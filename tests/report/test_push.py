"""A run is published with a card, by the real client against a hub on loopback."""

import json

import pytest
import yaml

from hunyuan_train import cli
from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.ask import describe_failure
from hunyuan_train.hub.download import MARKER
from hunyuan_train.report.push import find_target
from tests.hub.server import SECRET


@pytest.fixture
def run_folder(tmp_path):
    """A run of adapters on a base that was downloaded, with an export."""
    base = tmp_path / "base"
    (base / MARKER).parent.mkdir(parents=True)
    origin = {"format": 1, "hub": "huggingface", "repo": "tencent/Base", "commit": "c" * 40}
    (base / MARKER).write_text(json.dumps(origin | {"files": {}}))
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tencent\n---\n# Base\n")
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    settings = {
        "model": {"model_name_or_path": str(base)},
        "data": {"train_data_file": "/private/place/talk.jsonl"},
        "train": {"learning_rate": 0.0001, "output_dir": str(run)},
        "lora": {"use_lora": True},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 1.25, "eval_loss": 1.5}\n')
    adapter = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (run / "export" / "adapter_config.json").write_text(json.dumps(adapter))
    (run / "export" / "adapter_model.safetensors").write_bytes(b"w" * 5000)
    return run


def test_the_card_tells_data_metrics_settings_and_licence_and_no_path(run_folder, capsys):
    assert cli.main(["push", str(run_folder), "me/tuned", "--print_card"]) == 0
    card = capsys.readouterr().out
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "tencent/Base"
    assert head["base_model_relation"] == "adapter"
    assert (head["license"], head["license_name"]) == ("other", "tencent")
    assert "| held-out loss, last evaluation | 1.5 |" in card
    assert "| learning_rate | 0.0001 |" in card
    assert "`talk.jsonl`, 7 steps" in card
    assert "/private/place" not in card
    assert str(run_folder) not in card


def test_what_is_pushed_is_what_lies_there_with_the_base_by_its_name(
    run_folder,
    hub,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert cli.main(["push", str(run_folder / "export"), "me/tuned"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == f"{hub.url}/me/tuned"
    assert SECRET not in output.out + output.err
    there = hub.folder / "models" / "me" / "tuned"
    assert (there / "adapter_model.safetensors").read_bytes() == b"w" * 5000
    adapter = json.loads((there / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tencent/Base"
    assert "tencent/Base" in (there / "README.md").read_text()


@pytest.mark.slow
def test_without_a_token_the_remedy_is_told(run_folder, hub, capsys):
    assert cli.main(["push", str(run_folder), "me/tuned"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_the_card_has_no_setting_that_had_no_effect(run_folder, capsys):
    settings = yaml.safe_load((run_folder / "config.yaml").read_text())
    settings["train"] |= {"max_steps": 40, "num_train_epochs": 1.0}
    settings["lora"] = {"use_lora": False, "lora_rank": 64, "lora_alpha": 128.0}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["push", str(run_folder), "me/tuned", "--print_card"]) == 0
    card = capsys.readouterr().out
    assert "| max_steps | 40 |" in card
    assert "num_train_epochs" not in card
    assert "lora_" not in card.partition("## Settings")[2].replace("use_lora", "")


def test_a_hub_out_of_reach_is_told_as_one_that_was_sent_to():
    told = describe_failure(find_target("me/tuned"), "offline", "refused", is_sent=True)
    assert "could not be reached to send me/tuned" in told
    assert "folder" not in told


def test_targets_that_are_none_are_refused():
    for repo in ("tuned", "hf:badname", "me/a/b"):
        with pytest.raises(ConfigError, match=f"^REPO is {repo}; write it as OWNER/NAME"):
            find_target(repo)
    with pytest.raises(ConfigError, match="modelscope upload"):
        find_target("modelscope:me/tuned")


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert cli.main(["push", str(tmp_path / "model"), "me/tuned"]) == 2
    assert "neither config.json nor adapter_config.json" in capsys.readouterr().err
    (tmp_path / "model" / "config.json").write_text("{}")
    assert cli.main(["push", str(tmp_path / "model"), "me/tuned"]) == 2
    assert "with --run RUN" in capsys.readouterr().err

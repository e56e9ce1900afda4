"""A fine-tune that a format undoes: the whole command says so, and publishes nothing."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hunyuan_train.cli import main
from hunyuan_train.export.manifest import write_manifest
from hunyuan_train.launcher.exit_codes import USER_ERROR
from hunyuan_train.quantize.report import SURVIVES
from tests.taught import FAST, SLOW, write_base, write_taught_model

NUM_STEPS = 8  # gain most of a nat a token
KEPT = ("embed_tokens", "lm_head", "model.norm")  # as in LoRA: what is learnt lies in FP8
# What an activation in FP8 can be smaller than another of its token and not be zero is 2**18.
OUTLIER = 2.0**24


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `base`, `tuned` and the dialogues between them."""
    folder = tmp_path_factory.mktemp("survival")
    write_base(folder / "base")
    write_taught_model(folder / "tuned", num_steps=NUM_STEPS, kept=KEPT)
    write_manifest(folder / "tuned", folder / "base")  # as an export does
    records = [json.dumps(record, ensure_ascii=False) for record in (SLOW, FAST)]
    (folder / "train.jsonl").write_text("\n".join(records))
    return folder


def plant_outlier(model: Path) -> None:
    """Let one channel of all norms be huge, and what reads it small: the same model, bit by bit.

    Large models have such channels. In FP8 all others of the token become zero.
    """
    [file] = model.glob("*.safetensors")
    weights = load_file(file)
    for name, values in weights.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            values[0] *= OUTLIER
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate", "up_proj")):
            values[..., 0] /= OUTLIER
    save_file(weights, file, metadata={"format": "pt"})


def test_a_fine_tune_that_does_not_survive_is_not_published(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tuned / "out"
    command = ["quantize", str(tuned / "tuned"), str(output), "--format", "fp8"]
    command += ["--train_data", str(tuned / "train.jsonl")]  # the base is in the manifest
    report = output / "quantization_report.json"
    assert main(command) == 0
    whole = json.loads(report.read_text())["survival"]["all"]
    assert whole["gain"] > 0.1
    assert whole["survives"] > SURVIVES

    plant_outlier(tuned / "tuned")
    command.append("--overwrite")
    kept = report.read_bytes()
    assert main(command) == USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert "of what fine-tuning gained on trained tokens survives fp8, and 95% should" in said
    assert "choose a more accurate format (fp8-block)" in said
    assert report.read_bytes() == kept
    assert {path.name for path in tuned.iterdir()} == {"base", "tuned", "train.jsonl", "out"}

    assert main([*command, "--allow_loss"]) == 0
    undone = json.loads(report.read_text())["survival"]["all"]
    assert undone["gain"] == pytest.approx(whole["gain"], abs=1e-4)
    assert undone["survives"] < SURVIVES

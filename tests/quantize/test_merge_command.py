"""An adapter is merged into a quantised base where enough of the training survives, else not."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.cli import main
from hunyuan_train.export.check import load_source
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.launcher.exit_codes import USER_ERROR
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.compressed_values import decode, encode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.find_model import open_base
from hunyuan_train.quantize import merge_codes
from hunyuan_train.quantize.merge_codes import move_codes
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.quantised_bases import LAYOUTS, quantise_base
from tests.taught import FAST, SLOW, add_gradients, make_batches, read_samples, write_base

NUM_STEPS = 6
TARGETS = {
    "target_modules": ["q_proj", "v_proj", "o_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


def teach_adapter(base: Path, adapter: Path) -> None:
    """Train an adapter with PEFT on what the base's files mean."""
    shape = resolve_base(str(base))
    torch.manual_seed(0)
    model = load_source(shape, open_base(base, shape)).train()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **TARGETS))
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    samples = [sample for record in (SLOW, FAST) for sample in read_samples(record, tokenizer)]
    trained = [one for one in adapted.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(NUM_STEPS):
        for batch in make_batches(samples):
            add_gradients(adapted.base_model.model, *batch, len(samples))
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(adapter)


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in one layout, an adapter that was trained on it, and the dialogues."""
    folder = tmp_path_factory.mktemp("merge")
    write_base(folder / "plain")
    quantise_base(
        folder / "plain", folder / "base", request.param, resolve_base(str(folder / "plain"))
    )
    teach_adapter(folder / "base", folder / "adapter")
    records = [json.dumps(record, ensure_ascii=False) for record in (SLOW, FAST)]
    (folder / "train.jsonl").write_text("\n".join(records))
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return ["merge", *(str(folder / name) for name in ("base", "adapter", "out")), *arguments]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_what_survives_is_measured_and_published(folder: Path) -> None:
    data = str(folder / "train.jsonl")
    assert main(command(folder, "--train_data", data)) == 0
    survival = json.loads((folder / "out/merge_report.json").read_text())["survival"]["all"]
    assert survival["gain"] > 0.1
    assert survival["survives"] > 0.95
    assert resolve_base(str(folder / "out")) == resolve_base(str(folder / "base"))
    before, after = (load_file(folder / one / "model.safetensors") for one in ("base", "out"))
    assert before.keys() == after.keys()
    changed = [name for name in before if not _is_same(before[name], after[name])]
    assert len(changed) > 40
    assert all("experts" in name or "self_attn" in name for name in changed)
    assert not any("scale" in name for name in changed)
    first = {name: values.clone() for name, values in after.items()}
    assert main(command(folder, "--train_data", data, "--overwrite")) == 0
    after = load_file(folder / "out/model.safetensors")
    assert all(_is_same(values, after[name]) for name, values in first.items())


def test_what_rounding_undoes_is_refused_unless_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(merge_codes, "move_codes", lambda codes, *_: codes)  # all are undone
    given = command(folder, "--train_data", str(folder / "train.jsonl"), "--overwrite")
    kept = (folder / "out/SHA256SUMS").read_text() if (folder / "out").exists() else None
    assert main(given) == USER_ERROR
    error = said(capsys)
    assert "of what fine-tuning gained on trained tokens survives merging into weights" in error
    assert "merge into the model in bfloat16 and `quantize` that, keep the adapter" in error
    assert "Nothing was published" in error
    now = (folder / "out/SHA256SUMS").read_text() if (folder / "out").exists() else None
    assert now == kept
    assert main([*given, "--allow_loss"]) == 0
    report = json.loads((folder / "out/merge_report.json").read_text())
    assert report["survival"]["all"]["survives"] < 0.5


def test_without_dialogues_it_is_refused_unless_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "--overwrite")) == USER_ERROR
    assert "give those that it was trained on with --train_data FILE" in said(capsys)
    assert main(command(folder, "--overwrite", "--allow_loss")) == 0
    assert "survival" not in json.loads((folder / "out/merge_report.json").read_text())


@pytest.mark.parametrize("scheme", [Scheme("group", 32), Scheme("channel"), Scheme("block")])
def test_a_change_is_there_on_average_and_never_more_than_a_step_off(scheme: Scheme) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(256, 384, generator=generator)
    codes, scales = encode(weight, scheme)
    before = decode(codes, scales, scheme)
    change = 0.01 * torch.randn(256, 384, generator=generator)
    same = move_codes(codes, scales, torch.zeros_like(change), scheme, generator)
    assert torch.equal(decode(same, scales, scheme), before)  # what is not changed stays
    total = torch.zeros_like(weight)
    for _ in range(64):
        moved = decode(move_codes(codes, scales, change, scheme, generator), scales, scheme)
        total += moved - before
    inside = before.abs() < 0.9 * scales.max() * (7 if scheme.is_4bit else 448)
    largest_step = (moved - before).abs().max()
    assert largest_step < 0.7
    found = total[inside] / 64
    # How much of the change is there, as the slope of what was found over what was asked for.
    slope = float((found * change[inside]).sum() / change[inside].square().sum())
    assert slope == pytest.approx(1.0, abs=0.05)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(*(each.flatten().view(torch.uint8) for each in (one, other)))

"""A stopped run's checkpoint becomes the folder that the run itself would have exported."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import read_manifest, write_manifest
from hunyuan_train.checkpoint.run_folder import find_best
from hunyuan_train.checkpoint.verify import find_damage
from hunyuan_train.cli import main
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.export import huggingface_folder as release
from hunyuan_train.export import whole_files
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.families.registry import read_shape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.safetensors_files import write_range
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.released import SHAPE, make_run, read_released, write_checkpoint, write_released


class Trained:
    """Weights that a run could have reached: no bfloat16 value among them."""

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        generator = torch.Generator().manual_seed(len(tensor.name) + sum(tensor.name.encode()))
        return torch.randn(tensor.numel, generator=generator)[start:stop] * 0.1 + 1 / 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a released checkpoint, stopped on four ranks with experts split over two."""
    folder = tmp_path_factory.mktemp("stopped")
    write_released(folder / "base")
    checkpoint = make_run(folder / "run", folder / "base")
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=4, expert_size=2)
    return folder / "run"


@pytest.mark.parametrize("name", ["", "bfloat16", "float32"])
def test_any_split_becomes_one_model(run: Path, tmp_path: Path, name: str) -> None:
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    flags = ["--dtype", name] if name else []
    assert (
        main(["export", str(run / "checkpoints" / "step-000003"), str(tmp_path / "out"), *flags])
        == 0
    )
    tensors = read_released(tmp_path / "out")
    assert tensors.keys() == released_tensors(SHAPE).keys()
    for tensor in released_tensors(SHAPE).values():
        expected = Trained().read(tensor, 0, tensor.numel).view(tensor.shape)
        is_router = ".mlp.gate.wg." in tensor.name
        written = tensors[tensor.name]
        assert torch.equal(written, expected.to(torch.float32 if is_router else dtype)), tensor.name


def write_evaluated(folder: Path, base: Path, best_steps: dict[int, int | None]) -> None:
    """A run with a checkpoint at each step, which knows the best evaluation until then."""
    first = make_run(folder, base)
    for step, best_step in best_steps.items():
        checkpoint = first.with_name(f"step-{step:06d}")
        write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=1, expert_size=1)
        manifest = read_manifest(checkpoint)
        manifest["state"]["best_step"] = best_step
        write_manifest(checkpoint, manifest)


def test_the_best_checkpoint_is_found_by_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_evaluated(tmp_path / "run", run.parent / "base", {3: 3, 6: 3})
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--best"]) == 0
    assert "exporting" in (screen := capsys.readouterr().err)
    assert "step-000003" in screen
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("best_steps", "folder", "message"),
    [
        ({3: None}, "run", "was not evaluated before step-000003"),
        ({3: 2}, "run", "after step 2, whose checkpoint was not kept"),
        ({3: 3}, "run/checkpoints/step-000003", "is one checkpoint"),
    ],
)
def test_a_best_checkpoint_that_is_not_there_is_refused(
    run: Path, tmp_path: Path, best_steps: dict[int, int | None], folder: str, message: str
) -> None:
    write_evaluated(tmp_path / "run", run.parent / "base", best_steps)
    with pytest.raises(CheckpointError, match=message):
        find_best(tmp_path / folder)


def test_one_and_eight_ranks_give_the_same_files(run: Path, tmp_path: Path) -> None:
    outputs = []
    for num_ranks, expert_size in ((1, 1), (8, 4), (3, 1)):
        other = make_run(tmp_path / f"run{num_ranks}", run.parent / "base")
        write_checkpoint(other, SHAPE, Trained(), num_ranks=num_ranks, expert_size=expert_size)
        output = tmp_path / f"out{num_ranks}"
        export_stopped_run(open_stopped_run(other.parents[1], {}), output)
        outputs.append((output / "SHA256SUMS").read_text())
    assert len(set(outputs)) == 1


def test_folder_says_all_that_a_server_asks(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["export", str(run), str(output)]) == 0
    assert read_shape(output) == SHAPE
    config = AutoConfig.from_pretrained(output)
    assert config.model_type == "hunyuan_v1_moe"
    theta = 10000.0 * 1000.0 ** (SHAPE.head_dim / (SHAPE.head_dim - 2))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": theta}
    raw = json.loads((output / "config.json").read_text())
    # vLLM reads these of any Hunyuan config; Transformers 4 reads the last three.
    assert raw["use_mixed_mlp_moe"] is raw["use_qk_norm"] is True
    assert raw["max_position_embeddings"] == 262144
    # llama.cpp's converter reads these once a layer only.
    numbers = ("num_shared_expert", "moe_intermediate_size", "moe_topk")
    assert [raw[name] for name in numbers] == [[1, 1], [48, 48], [2, 2]]
    assert (raw["rope_scaling"], raw["rope_theta"], raw["torch_dtype"]) == (None, theta, "bfloat16")
    generation = GenerationConfig.from_pretrained(output)
    assert (generation.eos_token_id, generation.pad_token_id) == ([300, 307], 301)
    assert (generation.top_k, generation.temperature) == (20, 0.7)
    assert (output / "hy.tiktoken").read_bytes() == (TINY_TOKENIZER / "hy.tiktoken").read_bytes()
    assert (output / "chat_template.jinja").exists()
    assert (output / "LICENSE.txt").exists()
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.dtype == torch.bfloat16


def test_what_was_frozen_comes_from_the_base(run: Path, tmp_path: Path) -> None:
    base = run.parent / "base"
    checkpoint = make_run(tmp_path / "run", base)
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=2, expert_size=1)
    manifest = read_manifest(checkpoint)
    for entry in manifest["files"].values():
        ranges = entry["ranges"]
        entry["ranges"] = {name: ranges[name] for name in ranges if ".self_attn." in name}
    write_manifest(checkpoint, manifest)
    export_stopped_run(open_stopped_run(checkpoint, {}), tmp_path / "out")
    before, after = read_released(base), read_released(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".self_attn." in name}


def test_base_that_moved_is_given_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = run.parent / "base"
    checkpoint = make_run(tmp_path / "run", tmp_path / "gone")
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=1, expert_size=1)
    arguments = ["export", str(checkpoint), str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "model_name_or_path" in capsys.readouterr().err
    assert main([*arguments, "--model_name_or_path", str(base)]) == 0


def test_out_that_exists_is_kept_unless_told_otherwise(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    (output / "precious").mkdir(parents=True)
    assert main(["export", str(run), str(output)]) == 2
    assert "give another folder, or --overwrite" in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(run), str(output), "--overwrite"]) == 2
    assert "holds no model that --overwrite could replace" in " ".join(
        capsys.readouterr().err.split()
    )
    assert (output / "precious").exists()
    (output / "config.json").write_text("{}")
    assert main(["export", str(run), str(output), "--overwrite"]) == 0
    assert not (output / "precious").exists()
    assert not list(tmp_path.glob("out.*"))


def drop_range(run: Path) -> None:
    checkpoint = run / "checkpoints/step-000003"
    manifest = read_manifest(checkpoint)
    del manifest["files"]["rank-00001.safetensors"]["ranges"]["model.norm.weight"]
    write_manifest(checkpoint, manifest)


def write_nan(run: Path) -> None:
    locations = read_header(run / "checkpoints/step-000003/rank-00001.safetensors")
    write_range(locations["master:model.norm.weight"], 5, torch.tensor([float("nan")]))


def remove_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def remove_manifest(run: Path) -> None:
    (run / "checkpoints/step-000003/manifest.json").unlink()


@pytest.mark.parametrize("is_of_today", [True, False])
@pytest.mark.parametrize("place", ["a weight", "the header", "a state that is not exported"])
@pytest.mark.parametrize("use_lora", [False, True])
def test_one_flipped_bit_is_never_exported(
    run: Path,
    tmp_path: Path,
    place: str,
    use_lora: bool,
    is_of_today: bool,
    capsys: pytest.CaptureFixture,
) -> None:
    lora = LoraConfig(use_lora=True, lora_target_modules="attention") if use_lora else None
    checkpoint = make_run(tmp_path / "run", run.parent / "base", lora)
    write_checkpoint(
        checkpoint, SHAPE, Trained(), num_ranks=2, expert_size=1, is_of_today=is_of_today
    )
    manifest = read_manifest(checkpoint)
    ranges = manifest["files"]["rank-00001.safetensors"]["ranges"]
    if place.startswith("a state"):
        for entry in manifest["files"].values():
            del entry["ranges"]["model.norm.weight"]
        write_manifest(checkpoint, manifest)
    assert ranges
    file = checkpoint / "rank-00001.safetensors"
    norm = read_header(file)["master:model.norm.weight"].byte_offset
    flip_bit(file, 9 if place == "the header" else norm)
    if is_of_today and place.startswith("a state"):  # has a sum of its own, and is not read
        assert [faulty.name for faulty in find_faulty(checkpoint)] == [file.name]
        assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
        return
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "rank-00001.safetensors is not what was written" in error or "cannot be used" in error
    assert not list(tmp_path.glob("out*"))


def find_faulty(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that differ from their checksums."""
    manifest = read_manifest(checkpoint)
    names = list(manifest["files"])
    return [
        checkpoint / name
        for name in names
        if find_damage(checkpoint, manifest, [name], lambda _: None)
    ]


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_checkpoints_of_earlier_versions_give_the_same_files(
    run: Path, tmp_path: Path, num_ranks: int
) -> None:
    sums = []
    for is_of_today in (True, False):
        folder = tmp_path / f"{is_of_today}"
        folder.mkdir()
        checkpoint = make_run(folder / "run", run.parent / "base")
        write_checkpoint(
            checkpoint, SHAPE, Trained(), num_ranks=num_ranks, expert_size=1,
            is_of_today=is_of_today,
        )  # fmt: skip
        export_stopped_run(open_stopped_run(checkpoint, {}), folder / "out")
        sums.append((folder / "out" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]


def test_what_the_disk_returns_is_compared_with_what_was_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_file = whole_files.hash_file

    def damage_first(file: Path, **options: Any) -> str:
        # The last bit of a value: the model computes the same, should it be checked meanwhile.
        flip_bit(file, file.stat().st_size - 4)
        return hash_file(file, **options)

    monkeypatch.setattr(whole_files, "hash_file", damage_first)
    with pytest.raises(CheckpointError, match=r"does not return what was written to it, in its"):
        export_stopped_run(open_stopped_run(run, {}), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_files_are_summed_while_others_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    hash_file = whole_files.hash_file

    def note(file: Path, **options: Any) -> str:
        seen.append(file.name)
        return hash_file(file, **options)

    monkeypatch.setattr(whole_files, "hash_file", note)
    monkeypatch.setattr(release, "MAX_FILE_BYTES", release.HEADER_BYTES + 10**5)
    export_stopped_run(open_stopped_run(run, {}), tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 3
    assert sorted(seen) == names
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "out", check=True)


def flip_bit(file: Path, position: int) -> None:
    with file.open("r+b") as content:
        content.seek(position)
        (byte,) = content.read(1)
        content.seek(position)
        content.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["model-*.safetensors", "config.json", "hy.tiktoken"])
def test_frozen_weights_come_from_a_base_that_is_what_was_written(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    base = tmp_path / "base"
    assert main(["export", str(run), str(base)]) == 0
    checkpoint = make_run(tmp_path / "run", base)
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=1, expert_size=1)
    manifest = read_manifest(checkpoint)
    for entry in manifest["files"].values():
        ranges = entry["ranges"]
        entry["ranges"] = {one: ranges[one] for one in ranges if ".self_attn." in one}
    write_manifest(checkpoint, manifest)
    assert main(["export", str(checkpoint), str(tmp_path / "good")]) == 0
    sums, damaged = base / "SHA256SUMS", next(base.glob(name))
    lines = sums.read_text().splitlines()
    changed = [
        f"{'0' * 64}  {damaged.name}" if one.endswith(damaged.name) else one for one in lines
    ]
    sums.write_text("\n".join(changed))
    capsys.readouterr()
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{damaged} is not what was written: its checksum is not the one in SHA256SUMS" in error
    sums.unlink()
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0


HOSTILE_RANGES: list[object] = [
    None,
    [],
    [0, 0, 64],
    [0, 0, 65, 64],
    [0, 0, 64, "64"],
    [0, 0, 64, 63],
    [0, -1, 63, 64],
    [0, 32, 0, 64],
    [0, 0, 10**30, 10**30],
    [True, 0, 64, 64],
]
FORM, CONTENT = "is not what a run writes", "does not hold what its manifest says of model"


@pytest.mark.parametrize(
    ("numbers", "message"), [*((one, FORM) for one in HOSTILE_RANGES), ([0, 0, 63, 64], CONTENT)]
)
def test_range_that_a_file_does_not_hold_is_refused(
    run: Path, tmp_path: Path, numbers: object, message: str
) -> None:
    checkpoint = make_run(tmp_path / "run", run.parent / "base")
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=1, expert_size=1)
    manifest = read_manifest(checkpoint)
    manifest["files"]["rank-00000.safetensors"]["ranges"]["model.norm.weight"] = numbers
    write_manifest(checkpoint, manifest)
    with pytest.raises(CheckpointError, match=message):
        open_stopped_run(checkpoint, {})


def test_link_to_a_secret_is_not_published(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "secret").write_text("password")
    base = tmp_path / "base"
    write_released(base)
    (base / "LICENSE.txt").unlink()
    (base / "LICENSE.txt").symlink_to(tmp_path / "secret")
    checkpoint = make_run(tmp_path / "run", base)
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=1, expert_size=1)
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 2
    assert "outside of the model's folder" in " ".join(capsys.readouterr().err.split())
    cache = tmp_path / "hub" / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_text("as published")
    (base / "LICENSE.txt").unlink()
    (base / "LICENSE.txt").symlink_to(cache / "blobs" / "0123")
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_config, r"lies in no run: .*config\.yaml is missing"),
        (remove_manifest, "no complete checkpoint and no run that has one"),
        (drop_range, r"holds \d+ of \d+ elements of model\.norm\.weight"),
        (write_nan, r"model\.norm\.weight holds NaN or infinity"),
    ],
)
def test_checkpoint_that_is_no_model_is_refused(
    run: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    checkpoint = make_run(tmp_path / "run", run.parent / "base")
    write_checkpoint(checkpoint, SHAPE, Trained(), num_ranks=2, expert_size=1)
    spoil(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        export_stopped_run(open_stopped_run(tmp_path / "run", {}), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))

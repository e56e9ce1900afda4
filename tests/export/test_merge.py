"""A merged folder is PEFT's own merge, tensor by tensor, and nothing else in it changed."""

import errno
import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.checkpoint import publish
from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.cli import main
from hunyuan_train.export import merge
from hunyuan_train.export.check import load_served
from hunyuan_train.export.lora_deltas import read_changes
from hunyuan_train.export.manifest import read_base
from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.export.served_config import describe_config
from hunyuan_train.families.registry import read_shape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.build import native_config
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.past_cache import PastCache
from hunyuan_train.serve.errors import ServeError
from tests.batches import released_state
from tests.released import SHAPE, write_released

ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
SHARED = [f"shared_mlp.{part}_proj.weight" for part in ("gate", "up", "down")]


def load_plain(folder: Path) -> torch.nn.Module:
    return load_served(folder, torch.float32, native_config(SHAPE))


def make_adapter(base: Path, folder: Path, scale: float = 0.3, **settings: Any) -> None:
    """Have PEFT put an adapter on the base and save it, as if it had been trained."""
    torch.manual_seed(1)
    model = peft.get_peft_model(load_plain(base), peft.LoraConfig(r=4, lora_alpha=8, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
        elif "lora_magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(folder)


def merge_with_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model = peft.PeftModel.from_pretrained(load_plain(base), adapter)
    return released_state(model.merge_and_unload())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder by released name, flat, whatever its layout."""
    source = SafetensorsFolder.open(folder, SHAPE)
    return {
        name: source.read(stored, 0, stored.numel)
        for name, stored in released_tensors(SHAPE).items()
    }


PATTERNS = {"use_rslora": True, "alpha_pattern": {"k_proj": 3}, "rank_pattern": {"v_proj": 2}}
KINDS = {
    "attention": ATTENTION,
    "rslora with patterns": ATTENTION | PATTERNS,
    "experts": EXPERTS,
    "down projections of experts": {"target_parameters": ["experts.down_proj"]},
    "names that PEFT redirects": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "shared expert and router": {"target_modules": ["wg"], "target_parameters": SHARED},
    "dora": ATTENTION | {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("is_fused", "dtype"),
    [
        pytest.param(False, torch.bfloat16, id="single experts"),
        pytest.param(True, torch.bfloat16, id="fused experts"),
        pytest.param(False, torch.float32, id="float32"),
    ],
)
def test_merge_is_that_of_peft(
    tmp_path: Path, kind: str, is_fused: bool, dtype: torch.dtype
) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    before = write_released(base, is_fused=is_fused, is_native=is_fused, dtype=dtype)
    make_adapter(base, adapter, **KINDS[kind])
    merge_adapter(base, adapter, merged)
    named = read_changes(adapter, SHAPE)
    expected = merge_with_peft(base, adapter)
    for name, values in tensors_of(merged).items():
        assert values.dtype == before[name].dtype
        if name not in named:
            assert torch.equal(values, before[name].flatten()), name
            continue
        assert (values != before[name].flatten()).float().mean() > 0.5, name
        assert_rounded_once(values, expected[name])


@pytest.mark.parametrize("kind", ["attention", "experts", "dora"])
def test_blocks_of_any_size_give_the_same_bits(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_released(base, dtype=torch.bfloat16)
    make_adapter(base, adapter, **KINDS[kind])
    sums = []
    for size in (merge.BLOCK_BYTES, 1, 5000):
        monkeypatch.setattr(merge, "BLOCK_BYTES", size)
        merge_adapter(base, adapter, tmp_path / f"{size}")
        sums.append((tmp_path / f"{size}" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1] == sums[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zero_of_another_sign_is_no_change(dtype: torch.dtype) -> None:
    difference = merge.Difference()
    before, after = (torch.tensor(one, dtype=dtype) for one in ([0.0, 1, 2, 4], [-0.0, 1, 1.5, 4]))
    difference.add("w", before, after)
    assert (difference.num_changed, difference.largest) == ({"w": 1}, 0.5)
    with pytest.raises(CheckpointError, match="w holds NaN or infinity once merged"):
        difference.add("w", before, after.index_fill(0, torch.tensor(1), torch.nan))


def assert_rounded_once(values: Tensor, exact: Tensor) -> None:
    """Both sums are in float32, in another order; then ours are rounded to their dtype, once."""
    if values.dtype == torch.float32:
        assert torch.allclose(values, exact, rtol=1e-6, atol=2e-6)
        return
    rounded = exact.to(values.dtype)
    assert (values != rounded).float().mean() < 5e-3, "more than the last bits can turn"
    assert torch.allclose(values.float(), rounded.float(), rtol=2**-7, atol=1e-6)


def make_single_experts(adapter: Path, experts: tuple[int, ...]) -> dict[str, Tensor]:
    """An adapter with matrices of its own for some experts; returns what it adds, by tensor."""
    adapter.mkdir()
    generator = torch.Generator().manual_seed(2)
    tensors, added = {}, {}
    for expert in experts:
        name = f"model.layers.1.mlp.experts.{expert}.down_proj"
        rows, columns = released_tensors(SHAPE)[f"{name}.weight"].shape
        matrix_a = torch.randn(4, columns, generator=generator)
        matrix_b = torch.randn(rows, 4, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = matrix_a
        tensors[f"base_model.model.{name}.lora_B.weight"] = matrix_b
        added[f"{name}.weight"] = 2 * matrix_b @ matrix_a
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return added


@pytest.mark.parametrize("experts", [(3,), (0, 7), tuple(range(8))])
def test_adapter_on_some_experts_is_merged(tmp_path: Path, experts: tuple[int, ...]) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    before = write_released(base, dtype=torch.float32)
    added = make_single_experts(adapter, experts)
    merge_adapter(base, adapter, merged)
    for name, values in tensors_of(merged).items():
        exact = before[name] + added.get(name, 0)
        assert torch.allclose(values, exact.flatten(), rtol=1e-6, atol=1e-5), name


@pytest.mark.parametrize(
    "name",
    [
        "model-00002-of-00003.safetensors",
        "config.json",
        "LICENSE.txt",
        "adapter_model.safetensors",
        "adapter_config.json",
    ],
)
def test_what_keeps_checksums_is_verified_while_it_is_read(tmp_path: Path, name: str) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    folder = adapter if name.startswith("adapter") else base
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    sums = folder / "SHA256SUMS"
    wrong = digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    sums.write_text(f"{'0' * 64}  gone.txt\n{wrong}  {name}\n")
    with pytest.raises(CheckpointError, match=rf"{name} is not what was written: its checksum"):
        merge_adapter(base, adapter, merged)
    assert not list(tmp_path.glob("merged*"))
    sums.write_text("no checksums")
    with pytest.raises(CheckpointError, match="SHA256SUMS is no list of checksums"):
        merge_adapter(base, adapter, merged)
    sums.write_text(f"{digest} *{name}\n")
    merge_adapter(base, adapter, merged)


def test_link_out_of_the_base_is_not_merged(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    (base / "notes.txt").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match=r"notes\.txt is a link to /etc/passwd, outside"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def test_files_beside_the_weights_come_along_and_are_summed(tmp_path: Path) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    merge_adapter(base, adapter, merged)
    assert {path.name for path in merged.iterdir()} == {
        *(path.name for path in base.iterdir()),
        "SHA256SUMS",
        "export_manifest.json",
    }
    assert read_base(merged) == str(base)
    for name in ("LICENSE.txt", "model.safetensors.index.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    check_sums(merged)
    # Clients read the merged model as they read an exported one.
    written, published = (json.loads((one / "config.json").read_text()) for one in (merged, base))
    assert written == describe_config(SHAPE, torch.bfloat16, base=published)
    assert read_shape(merged) == read_shape(base)
    # A second merge over the first, asked for by --overwrite, replaces its sums too.
    make_adapter(base, adapter, scale=0.1, **ATTENTION)
    merge_adapter(merged, adapter, tmp_path / "again")
    check_sums(tmp_path / "again")
    assert read_base(tmp_path / "again") == str(merged)


def test_what_was_merged_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_released(base)
    make_adapter(base, adapter, **ATTENTION)
    zero_out(adapter, "model.layers.1.self_attn.k_proj.lora_B")
    with caplog.at_level(logging.INFO):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert "1 of 8 named tensors are unchanged" in caplog.text
    assert "elements of 7 tensors, by up to " in caplog.text
    assert f"the other {len(released_tensors(SHAPE)) - 8} are the base's bytes" in caplog.text
    assert "train = serve: the mean difference between losses" in caplog.text


def zero_out(adapter: Path, part: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if part in name:
            tensors[name].zero_()
    save_file(tensors, file)


def rename(adapter: Path, old: str, new: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): values for name, values in load_file(file).items()}, file)


def set_in_config(adapter: Path, name: str, value: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))


def shrink(adapter: Path, part: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if part in name:
            tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file)


def flatten(adapter: Path, part: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if part in name:
            tensors[name] = tensors[name].flatten()
    save_file(tensors, file)


def add_magnitude(adapter: Path, length: int) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    [module] = {name.partition(".lora_")[0] for name in tensors if "layers.0.self_attn.q" in name}
    save_file(tensors | {f"{module}.lora_magnitude_vector": torch.ones(length)}, file)


def write_settings(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)


def cut_weights(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_released(folder)
    return folder


def add_whole(adapter: Path, name: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.ones(4, 4)}, file)


def pickle_weights(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))


SPOILED = [
    (set_in_config, ("lora_alpha", None), r"lora_alpha None, .*set it to the number"),
    (set_in_config, ("lora_alpha", "16"), "lora_alpha '16'"),
    (set_in_config, ("lora_alpha", True), "lora_alpha True"),
    (set_in_config, ("r", None), "r None"),
    (set_in_config, ("r", 8), r"has rank 4 for 1 expert\(s\), and its .* says 8"),
    (set_in_config, ("alpha_pattern", {"k_proj": None}), "alpha_pattern of k_proj None"),
    (set_in_config, ("alpha_pattern", {"(": 3}), "alpha_pattern that cannot be used"),
    (set_in_config, ("rank_pattern", ["k_proj"]), "rank_pattern that cannot be used"),
    (write_settings, ("[" * 10**6,), "nested too deeply"),
    (
        add_whole,
        ("base_model.model.lm_head.weight",),
        r"whole weights .*\(base_model.model.lm_head",
    ),
    (add_whole, ("base_model.model.model.embed_tokens.weight",), "whole weights .*embed_tokens"),
    (add_whole, ("base_model.model.model.norm.modules_to_save.default.weight",), "whole weights"),
    (pickle_weights, (), r"adapter_model\.bin is not read: it can hold code; .*save_pretrained"),
    (rename, ("model.layers", "layers"), r"16 of 16 tensors .* match nothing"),
    (rename, ("layers.1", "layers.2"), r"8 of 16 .*layers\.2\.self_attn\.\w_proj\.lora_A"),
    (rename, ("0.self_attn.q_proj.lora_A", "x"), "2 of 16 .*match nothing"),
    (rename, ("lora_A", "lora_embedding_A"), "lora_embedding_A"),
    (shrink, ("q_proj.lora_A",), "q_proj is made for weights of 128 x 63"),
    (shrink, ("q_proj.lora_B",), "matrices of 4 and 3 ranks"),
    (set_in_config, ("modules_to_save", ["lm_head"]), r"modules_to_save=\['lm_head'\]"),
    (set_in_config, ("bias", "all"), "bias='all'"),
    (set_in_config, ("init_lora_weights", "pissa"), "init_lora_weights='pissa'"),
    (set_in_config, ("peft_type", "IA3"), "peft_type IA3; only LORA"),
    (zero_out, ("lora_B",), "changes none of the 8 tensors it names"),
    (set_in_config, ("lora_alpha", 1e-7), "changes none of the 8 tensors"),
    (flatten, ("0.self_attn.q_proj.lora_A",), "2 of 16 .*match nothing"),
    (add_magnitude, (127,), "3 of 17 .*match nothing"),
    (write_settings, ("[]",), "give the folder of a PEFT adapter"),
    (write_settings, ("{}",), "peft_type None; only LORA"),
    (cut_weights, (), "5 bytes are missing at its end"),
]


@pytest.mark.parametrize(("spoil", "arguments", "message"), SPOILED)
def test_adapter_that_cannot_be_merged_is_refused(
    tmp_path: Path, base: Path, spoil: Any, arguments: tuple[Any, ...], message: str
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(base, adapter, **ATTENTION)
    spoil(adapter, *arguments)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(base, adapter, merged)
    assert not merged.exists()
    assert not list(tmp_path.glob("*.incomplete"))


def test_folder_without_an_adapter_is_named(tmp_path: Path, base: Path) -> None:
    for folder in (base, tmp_path / "missing", base / "config.json"):
        with pytest.raises(CheckpointError, match=f"{folder} holds no adapter_config.json; give"):
            merge_adapter(base, folder, tmp_path / "merged")


def test_adapter_that_no_loss_shows_is_an_error(tmp_path: Path) -> None:
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    write_released(base, dtype=torch.float32)
    make_adapter(base, adapter, scale=1e-7, **ATTENTION)
    with pytest.raises(ServeError, match="would be served without effect"):
        merge_adapter(base, adapter, merged)
    assert not merged.exists()


def test_command_refuses_to_merge_onto_what_it_reads(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(base, adapter, **ATTENTION)
    assert main(["merge", str(base), str(adapter), str(base), "--overwrite"]) == 2
    assert "which is being read; give another folder" in " ".join(capsys.readouterr().err.split())
    assert main(["merge", str(base), str(tmp_path), str(tmp_path / "merged")]) == 2
    assert "give the folder of a PEFT adapter" in " ".join(capsys.readouterr().err.split())
    assert main(["merge", str(base), str(adapter), str(tmp_path / "merged")]) == 0


def check_sums(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    digests = dict(reversed(line.split("  ")) for line in lines)
    assert digests.keys() == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in digests.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_merge_begins_nothing_that_the_disk_cannot_hold(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "new" / "merged"
    make_adapter(base, adapter, **ATTENTION)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    with pytest.raises(CheckpointError, match=r"needs \d+\.\d MB and .* has \d+\.\d MB free; make"):
        merge_adapter(base, adapter, merged)
    assert not merged.parent.exists()


def test_disk_that_fills_up_is_said_and_left_as_it_was(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(base, adapter, **ATTENTION)

    def write_nothing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PastCache, "write", write_nothing)
    with pytest.raises(CheckpointError, match=r"be written \(No space left on device\); make"):
        merge_adapter(base, adapter, merged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_place_that_cannot_be_written_is_named(tmp_path: Path, base: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(base, adapter, **ATTENTION)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be made \(Not a directory\); give a folder"):
        merge_adapter(base, adapter, tmp_path / "file" / "merged")

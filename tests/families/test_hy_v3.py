"""hy_v3: what its files say, and a tiny one from its folder through training to its export."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.check import check_model, load_source
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model, read_prompts
from hunyuan_train.export.huggingface_folder import Release
from hunyuan_train.export.lora_deltas import read_changes
from hunyuan_train.export.served_config import describe_config
from hunyuan_train.export.served_tokenizer import complete_tokenizer
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.hy_v3 import HY3, HY_MT2_30B_A3B, HY_V3
from hunyuan_train.families.registry import parse_shape, read_shape
from hunyuan_train.families.tables import (
    count_parameters,
    kind_of,
    model_parameters,
    released_tensors,
)
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.build import model_class, native_config
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.expert import moe_blocks
from hunyuan_train.parallel.optimizer import decay_groups
from hunyuan_train.selftest import reference, samples
from hunyuan_train.serve.artefact import read_artefact
from hunyuan_train.serve.engines import ENGINES, Job
from hunyuan_train.serve.known_pairs import find_pairs
from hunyuan_train.serve.placement import Placement
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch, plain_loss
from tests.engines import (
    WEIGHT_DECAY,
    end_engines,
    kept_weights,
    my_share,
    resume,
    save_checkpoint,
    small_engine,
)
from tests.families.grammar.hy_v3.stand_in import special_ids, write_stand_in
from tests.families.hy_v3_folder import SHAPE, published_config, write_hy_v3
from tests.ranks import run_ranks, run_together
from tests.released import make_run, read_released

RATE, NUM_STEPS, NUM_BATCHES = 0.05, 5, 4
TOLERANCE = 1e-6
MTP = "model.layers.3."


@pytest.mark.parametrize(
    ("shape", "total", "active", "num_tensors"),
    [
        (HY3, 295_033_528_320, 20_675_715_072, 47_138),
        (HY_MT2_30B_A3B, 30_064_719_872, 3_451_860_992, 18_673),
    ],
)
def test_published_models_have_their_parameters(shape, total, active, num_tensors) -> None:
    counts = count_parameters(shape)
    assert (counts.total, counts.active) == (total, active)
    tensors = released_tensors(shape)
    assert len(tensors) == num_tensors
    if shape.num_mtp_layers:
        mtp = sum(one.numel for name, one in tensors.items() if name.startswith("model.layers.80."))
        biases = sum(one.numel for one in tensors.values() if one.name.endswith("expert_bias"))
        assert (total + mtp - shape.num_experts, biases) == (298_786_140_416, 15_360)


def test_the_table_is_that_of_the_real_class() -> None:
    with torch.device("meta"):
        model = model_class(SHAPE)(native_config(SHAPE))
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == {
        one.name: one.shape for one in model_parameters(SHAPE)
    }
    kinds = {name: kind_of(HY_V3, name) for name, _ in model.named_buffers()}
    biases = [name for name, kind in kinds.items() if kind is Kind.ROUTER_BIAS]
    assert biases == [f"model.layers.{layer}.mlp.e_score_correction_bias" for layer in (1, 2)]


def test_a_published_config_is_read() -> None:
    assert parse_shape(published_config(), source="config.json") == SHAPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_k_dense_replace": None}, "has no field 'first_k_dense_replace'; take"),
        ({"first_k_dense_replace": 2}, "first_k_dense_replace = 2; it must be the number of dense"),
        ({"route_norm": False}, "sets route_norm=False, which Transformers' hy_v3 does not"),
        ({"moe_router_use_sigmoid": False}, "moe_router_use_sigmoid=False"),
        ({"qk_norm": False}, "qk_norm=False"),
        ({"expert_hidden_dim": 47}, "the same as moe_intermediate_size"),
        ({"rope_parameters": {"rope_type": "default"}}, "the default rope with its rope_theta"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "alpha": 1e3, "rope_theta": 1e4}},
            "the default rope with its rope_theta",
        ),
        ({"router_scaling_factor": 0}, "it must be a number above 0"),
        ({"num_experts_per_tok": 9}, "a whole number from 1 to 8"),
        ({"model_type": "hy_v4"}, "eager way alone"),
    ],
)
def test_a_config_that_would_train_something_else_is_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_shape(published_config() | change, source="config.json")
    assert "\n" not in str(caught.value)


def test_a_config_is_exported_as_it_came_or_as_all_readers_take_it() -> None:
    base = published_config() | {"auto_map": {"AutoConfig": "configuration_hy_v3.HYV3Config"}}
    assert describe_config(SHAPE, torch.float32, base=base) == published_config() | {
        "dtype": "float32"
    }
    written = describe_config(SHAPE, torch.float32, base={})
    assert parse_shape(written, source="config.json") == SHAPE
    assert written["torch_dtype"] == "float32"


def test_the_files_of_its_tokenizer_are_exported_as_they_came(tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path, special_ids(), tokenizer_class="HYTokenizer")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    complete_tokenizer(folder, load_tokenizer(folder), SHAPE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("engine", "version", "flags"),
    [
        ("vllm", "0.32.0", ["--reasoning-parser", "hy_v3", "--tool-call-parser", "hy_v3"]),
        ("sglang", "0.5.23", ["--reasoning-parser", "hunyuan", "--tool-call-parser", "hunyuan"]),
    ],
)
def test_engines_are_started_with_its_own_parsers(tmp_path: Path, engine, version, flags) -> None:
    write_hy_v3(tmp_path / "model")
    artefact = read_artefact(tmp_path / "model", base=None)
    asked = artefact.features | {"tools", "streamed tools"}
    pairs = find_pairs(engine, version, asked)
    assert [row for row in pairs if row.verdict == "refused" and "cpu" not in row.features] == []
    [known] = [one for one in ENGINES if one.name == engine]
    job = Job(
        artefact=artefact,
        placement=Placement(
            tensor_parallel_size=1, splits_experts=False, context_length=4096, num_spare_gpus=0
        ),
        served_name="hy3",
        host="127.0.0.1",
        port=8000,
        pairs=pairs,
    )
    words = known.build(job)
    start = words.index(flags[0])
    assert words[start : start + 4] == flags


@pytest.mark.parametrize(
    ("engine", "version", "reason"),
    [("vllm", "0.23.0", "vocabulary lacks"), ("trtllm", "", "no class for Hy3")],
)
def test_engines_that_cannot_serve_it_are_refused(tmp_path: Path, engine, version, reason) -> None:
    write_hy_v3(tmp_path / "model")
    features = read_artefact(tmp_path / "model", base=None).features
    refused = [row for row in find_pairs(engine, version, features) if row.verdict == "refused"]
    assert any(reason in row.reason for row in refused)


def test_listed_layers_may_agree_with_more_dense_ones() -> None:
    listed = ["dense", "dense", "sparse"]
    fields = published_config() | {"first_k_dense_replace": 2, "mlp_layer_types": listed}
    assert parse_shape(fields, source="config.json").num_dense_layers == 2


def test_the_reference_is_what_transformers_computes() -> None:
    shape, weights = samples.HY_V3, samples.WEIGHTS
    plain, native = reference.plain_model(shape, weights), load_source(shape, weights)
    ids = torch.randint(0, shape.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    expected = native(input_ids=ids, use_cache=False).logits
    assert (plain(input_ids=ids).logits - expected).abs().max() < 1e-5
    for block in (layer.mlp for layer in plain.model.layers[1:]):
        block.e_score_correction_bias.zero_()
    assert (plain(input_ids=ids).logits - expected).abs().max() > 0.1  # the bias decides choices


@pytest.mark.parametrize("is_fused", [False, True])
def test_both_layouts_are_read_and_the_last_layer_may_be_left_out(tmp_path, is_fused) -> None:
    tensors = write_hy_v3(tmp_path / "base", is_fused=is_fused)
    source = SafetensorsFolder.open(tmp_path / "base", SHAPE)
    for name, stored in released_tensors(SHAPE).items():
        assert torch.equal(source.read(stored, 0, stored.numel), tensors[name].flatten()), name
    located = locate_weights(tmp_path / "base", replace(SHAPE, leaves_out_mtp=True))
    assert located.keys() == {name for name in tensors if not name.startswith(MTP)}


def test_a_folder_that_lacks_the_last_layer_is_told_how_to_train_without(tmp_path) -> None:
    write_hy_v3(tmp_path / "base", shape=replace(SHAPE, leaves_out_mtp=True))
    with pytest.raises(ConfigError, match="--carry_mtp false"):
        locate_weights(tmp_path / "base", SHAPE)
    assert locate_weights(tmp_path / "base", replace(SHAPE, leaves_out_mtp=True))


class Case(NamedTuple):
    """How a model is split, and what becomes of it."""

    stage: int
    expert_size: int  # 0: not split
    num_steps: int = NUM_STEPS
    is_fused: bool = False
    dtype: torch.dtype = torch.float32
    is_bf16: bool = False

    @property
    def name(self) -> str:
        return "-".join(str(one) for one in self)


def train_and_export(folder: Path, case: Case) -> tuple[list[float], dict]:
    """Train from a folder, save and export; the losses, and the weights kept here."""
    base = folder / "base"
    shape = read_shape(base)
    source = SafetensorsFolder.open(base, shape)
    engine = small_engine(
        stage=case.stage,
        expert_size=case.expert_size,
        optimizer="sgd",
        max_grad_norm=0.0,
        is_bf16=case.is_bf16,
        shape=shape,
        source=source,
    )
    losses = [
        train_step(engine, SFT, my_share(global_batch(step, NUM_BATCHES)), learning_rate=RATE).loss
        for step in range(case.num_steps)
    ]
    save_checkpoint(engine, TrainerState(), folder / "run/checkpoints/step-000003")
    release = Release(shape=shape, dtype=case.dtype, companions=(), base=base)
    check = partial(check_model, read_prompts(engine, shape, written_dtype=case.dtype))
    export_model(engine, folder / "live", release, source, check=check)
    return losses, kept_weights(engine.module)


def train_plain(base: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The same by Transformers alone, as it reads the folder."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.SGD(decay_groups(model, WEIGHT_DECAY), lr=RATE)
    losses = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = plain_loss(model, global_batch(step, NUM_BATCHES))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, split_by_released_name(model)


def split_by_released_name(model: nn.Module) -> dict[str, Tensor]:
    kept = reference.kept_parameters(model)
    return {name: torch.from_numpy(values) for (name, _), values in kept.items()}


def prepare(folder: Path, case: Case) -> tuple[Path, Case]:
    """Write a base and the folder of a run on it."""
    here = folder / case.name
    write_hy_v3(here / "base", dtype=case.dtype, is_fused=case.is_fused)
    make_run(here / "run", here / "base")
    return here, case


def check_case(folder: Path, ranks: list[tuple[list[float], dict]]) -> None:
    expected_losses, expected = train_plain(folder / "base")
    for losses, kept in ranks:
        for ours, theirs in zip(losses, expected_losses, strict=True):
            assert abs(ours - theirs) < TOLERANCE
        for (name, start), values in kept.items():
            theirs = expected[name].flatten()[start : start + len(values)]
            assert (values - theirs).abs().max() < TOLERANCE, name


def check_export(folder: Path, case: Case, *, is_trained: bool) -> None:
    """All names of the base; the bias and the last layer byte for byte, and config.json too."""
    before = {**read_tensors(folder / "base", case)}
    after = read_released(folder / "live")
    assert after.keys() == before.keys()
    for name, values in after.items():
        assert values.dtype == before[name].dtype, name
        is_carried = name.endswith("expert_bias") or name.startswith(MTP)
        assert torch.equal(values, before[name]) == (is_carried or not is_trained), name
    configs = [json.loads((folder / one / "config.json").read_text()) for one in ("base", "live")]
    assert configs[0] == configs[1]
    export_stopped_run(open_moved(folder), folder / "later")
    sums = [(folder / one / "SHA256SUMS").read_text().splitlines() for one in ("live", "later")]
    assert {line for line in sums[0] if "model" in line} <= set(sums[1])


def read_tensors(base: Path, case: Case) -> dict[str, Tensor]:
    source = SafetensorsFolder.open(base, SHAPE)
    return {
        name: source.read(one, 0, one.numel).view(one.shape)
        for name, one in released_tensors(SHAPE).items()
    }


def open_moved(folder: Path) -> Any:
    return open_stopped_run(folder / "run/checkpoints/step-000003", {})


ON_TWO = (Case(3, 2), Case(2, 0), Case(3, 2, num_steps=0, dtype=torch.bfloat16, is_bf16=True))
ON_FOUR = (
    Case(3, 1),
    Case(3, 2, is_fused=True),
    Case(3, 4),
    Case(3, 0),
    Case(3, 4, num_steps=0, dtype=torch.bfloat16, is_bf16=True, is_fused=True),
    Case(3, 1, num_steps=0, dtype=torch.bfloat16),
)


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [(2, ON_TWO), pytest.param(4, ON_FOUR, marks=pytest.mark.slow)],
)
def test_it_trains_and_exports_as_transformers_would(tmp_path, world_size, cases) -> None:
    prepared = tuple(prepare(tmp_path, case) for case in cases)
    results = run_together(train_and_export, world_size, prepared)
    for (folder, case), ranks in results.items():
        if case.num_steps:
            check_case(folder, ranks)
        check_export(folder, case, is_trained=bool(case.num_steps))


WRONG = (
    {"preset_model": "deepseek_v3"},
    {"preset_model": "minimax_m3"},
    {"routed_scaling_factor": 1.0},
    {"score_func": "softmax"},
    {"route_norm": False},
    {"has_shared_experts": False},
)


def refuse_sections() -> list[str]:
    """What is said of each wrong section; "" where it is trained with."""
    said = []
    for section in WRONG:
        try:
            small_engine(
                stage=3,
                expert_size=1,
                shape=samples.HY_V3,
                source=samples.WEIGHTS,
                expert_section=section,
            )
        except (ConfigError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("")
        end_engines()
    return said


def test_blocks_that_would_route_otherwise_are_refused() -> None:
    [said] = run_ranks(refuse_sections, 1)
    parts = (
        ("route_norm False, not True",),
        ("expert_activation swiglu_oai, not swiglu",),
        ("route_scale 1.0, not 2.826",),
        ("score_func softmax, not sigmoid",),
        ("route_norm False, not True",),
        ("shared experts False, not True",),
    )
    for text, wanted in zip(said, parts, strict=True):
        assert "ConfigError: expert_parallel in the DeepSpeed file makes model.layers.1" in text
        assert all(part in text for part in wanted), text


def resume_reshaped(folder: Path, stage: int, expert_size: int) -> dict:
    """The weights that another split takes over from a checkpoint."""
    base = folder / "base"
    shape = read_shape(base)
    engine = small_engine(
        stage=stage,
        expert_size=expert_size,
        optimizer="sgd",
        shape=shape,
        source=SafetensorsFolder.open(base, shape),
    )
    resume(engine, folder / "run/checkpoints/step-000003")
    blocks = [block.router.e_score_correction_bias for block in moe_blocks(engine.module)]
    assert all(one.dtype == torch.float32 for one in blocks)
    return kept_weights(engine.module) | {
        (f"model.layers.{layer}.mlp.expert_bias", 0): one.cpu()
        for layer, one in enumerate(blocks, 1)
    }


@pytest.mark.slow
def test_a_checkpoint_is_taken_over_by_another_split(tmp_path: Path) -> None:
    folder, case = prepare(tmp_path, Case(3, 4))
    run_together(train_and_export, 4, ((folder, case),))
    saved = read_released(folder / "live")
    for kept in run_ranks(resume_reshaped, 2, folder, 3, 2):
        for (name, start), values in kept.items():
            assert torch.equal(values, saved[name].flatten()[start : start + len(values)]), name


@pytest.mark.parametrize(
    "module", ["0.self_attn.q_proj", "1.mlp.gate.wg", "1.mlp.shared_mlp.up_proj"]
)
def test_an_adapter_of_another_family_is_refused(tmp_path: Path, module: str) -> None:
    name = f"base_model.model.model.layers.{module}"
    matrices = {
        f"{name}.lora_A.weight": torch.zeros(8, 128),
        f"{name}.lora_B.weight": torch.zeros(512, 8),
    }
    save_file(matrices, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="take the base that the adapter was trained on"):
        read_changes(tmp_path, SHAPE)

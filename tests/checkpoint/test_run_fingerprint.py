"""A run does not go on from a checkpoint of another one, unless told to."""

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import write_manifest
from hunyuan_train.checkpoint.run_fingerprint import (
    UNDECIDING,
    check_changes,
    check_same_data,
    describe_run,
)
from hunyuan_train.config.load import load_config
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import SECTIONS
from hunyuan_train.families.hunyuan_v1_moe import A13B, TINY
from hunyuan_train.model.base_folder import identify_weights
from hunyuan_train.shipped import PACKAGE
from hunyuan_train.source_hash import hash_source
from tests.manifests import make_manifest
from tests.released import write_released

FOLDER = Path("runs/one/checkpoints/step-000003")


def describe(config: RunConfig, rows_per_step: int | None = 4) -> dict[str, dict[str, object]]:
    return describe_run(config, TINY, rows_per_step=rows_per_step)


SAVED = describe(load_config([]))


def test_the_same_run_goes_on() -> None:
    check_changes(SAVED, describe(RunConfig()), FOLDER, config=RunConfig())


@pytest.mark.parametrize(
    "flags",
    [
        ["--output_dir", "elsewhere", "--save_steps", "7", "--logging_steps", "2"],
        ["--max_hours", "2", "--save_total_limit", "3"],
        ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"],
        ["--expert_parallel_size", "4", "--num_processes", "4", "--deepspeed", "other.json"],
    ],
)
def test_what_changes_no_step_may_change(flags: list[str]) -> None:
    config = load_config(flags)
    check_changes(SAVED, describe(config), FOLDER, config=config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate", "2e-5"], r"other settings: learning_rate \(1e-05, now 2e-05\)"),
        (["--weight_decay", "0.1", "--seed", "7"], r"seed \(42, now 7\), weight_decay \(0.0"),
        (["--freeze_router"], r"freeze_router \(False, now True\)"),
    ],
)
def test_other_settings_are_refused_unless_told_otherwise(flags: list[str], message: str) -> None:
    config = load_config(flags)
    with pytest.raises(CheckpointError, match=message):
        check_changes(SAVED, describe(config), FOLDER, config=config)
    config = load_config([*flags, "--ignore_settings_change"])
    check_changes(SAVED, describe(config), FOLDER, config=config)


def test_settings_of_these_sections_change_no_step() -> None:
    free = ("evaluation", "checkpoints", "logs", "parallel", "launch")
    names = [field.name for section in free for field in fields(SECTIONS[section])]
    assert not set(names) & set(SAVED["settings"])
    assert {"learning_rate", "seed", "max_steps", "freeze", "lora_rank"} <= set(SAVED["settings"])


def test_another_length_is_another_run_where_the_learning_rate_follows_from_it() -> None:
    longer = load_config(["--max_steps", "99"])
    with pytest.raises(CheckpointError, match=r"other settings: max_steps \(-1, now 99\)"):
        check_changes(SAVED, describe(longer), FOLDER, config=longer)
    constant = ["--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "5"]
    saved, longer = load_config(constant), load_config([*constant, "--max_steps", "99"])
    check_changes(describe(saved), describe(longer), FOLDER, config=longer)
    warmed_up = load_config([*constant[:2], "--warmup_ratio", "0.1"])
    assert "max_steps" in describe(warmed_up)["settings"]
    by_share = load_config([*constant[:2], "--warmup_steps", "0.1"])
    assert "max_steps" in describe(by_share)["settings"]


def test_another_global_batch_is_another_run() -> None:
    with pytest.raises(CheckpointError, match=r"rows per step \(4, now 8\)"):
        check_changes(SAVED, describe(RunConfig(), 8), FOLDER, config=RunConfig())
    check_changes(SAVED, describe(RunConfig(), None), FOLDER, config=RunConfig())


def test_other_code_is_refused_unless_told_otherwise() -> None:
    current = describe(RunConfig())
    current["code"] = current["code"] | {"torch": "9.9.9"}
    with pytest.raises(CheckpointError, match=r"other code: torch \(.*, now 9\.9\.9\).*--ignore_c"):
        check_changes(SAVED, current, FOLDER, config=RunConfig())
    check_changes(SAVED, current, FOLDER, config=load_config(["--ignore_code_change"]))


def test_a_checkpoint_of_code_that_was_hashed_otherwise_is_refused_with_the_remedy() -> None:
    saved = {**SAVED, "code": SAVED["code"] | {"hunyuan_train": "source 0123456789ab"}}
    message = r"hunyuan_train \(source 0123456789ab, now source \w+\).*--ignore_code_change"
    with pytest.raises(CheckpointError, match=message):
        check_changes(saved, SAVED, FOLDER, config=RunConfig())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of our code, to be changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "hunyuan_train", ignore=ignored))


def hash_deciding(package: Path) -> str:
    return hash_source(package, left_out=UNDECIDING)


@pytest.fixture(scope="module")
def ours() -> str:
    """The hash of our code as it is."""
    return hash_deciding(PACKAGE)


def test_comments_and_docstrings_are_no_other_code(package: Path) -> None:
    before = hash_deciding(package)
    for path in package.rglob("*.py"):
        text = re.sub(r'(?m)^( *""")(?=\S)', r"\1Another docstring. ", path.read_text())
        path.write_text(f"# Another comment.\n\n{text}")
    assert hash_deciding(package) == before == hash_deciding(PACKAGE)


def test_another_seed_of_a_rank_is_other_code(package: Path) -> None:
    before, run = hash_deciding(package), package / "run.py"
    seeded = run.read_text().replace("manual_seed(seed + ", "manual_seed(seed + 1 + ")
    assert seeded != run.read_text()
    run.write_text(seeded)
    assert hash_deciding(package) != before


@pytest.mark.parametrize(
    "name",
    [
        *("run.py", "instrumentation.py", "config/resolve.py", "data/batches/packing.py"),
        *(
            "families/tensors.py",
            "model/router.py",
            "parallel/expert.py",
            "optim/lean.py",
            "objectives/loss_groups.py",
        ),
        *("trainer/step.py", "evaluation/losses.py", "checkpoint/resharding.py"),
    ],
)
def test_every_room_that_decides_numbers_counts(package: Path, name: str, ours: str) -> None:
    with (package / name).open("a") as file:
        file.write("another = 1\n")
    assert hash_deciding(package) != ours


def test_what_cannot_change_a_step_does_not_count(package: Path, ours: str) -> None:
    for name in UNDECIDING:
        path = package / name
        files = list(path.rglob("*.py")) if path.is_dir() else [path]
        assert path.exists()
        for file in files:
            file.write_text("another = 1\n")
    assert hash_deciding(package) == ours


def test_another_shape_is_refused_whatever_is_ignored() -> None:
    other = describe_run(RunConfig(), replace(TINY, num_experts=32), rows_per_step=4)
    config = load_config(["--ignore_code_change", "--ignore_settings_change"])
    with pytest.raises(CheckpointError, match=r"other model: num_experts \(\d+, now 32\)"):
        check_changes(SAVED, other, FOLDER, config=config)


def test_a_checkpoint_from_before_there_were_families_is_one_of_the_first() -> None:
    before = {name: value for name, value in SAVED["model"].items() if name != "family"}
    check_changes({**SAVED, "model": before}, SAVED, FOLDER, config=RunConfig())
    dense = {**SAVED["model"], "family": "hunyuan_v1_dense"}
    with pytest.raises(CheckpointError, match=r"family \(hunyuan_v1_moe, now hunyuan_v1_dense\)"):
        check_changes({**SAVED, "model": before}, {"model": dense}, FOLDER, config=RunConfig())


def test_another_model_of_the_same_shape_is_told_apart(tmp_path: Path) -> None:
    write_released(tmp_path / "one")
    write_released(tmp_path / "same")
    write_released(tmp_path / "other")
    file = next(iter(sorted((tmp_path / "other").glob("*.safetensors"))))
    content = bytearray(file.read_bytes())
    content[len(content) // 2 + 1] ^= 1
    file.write_bytes(content)
    one, same, other = (identify_weights(str(tmp_path / n)) for n in ("one", "same", "other"))
    assert one == same != other
    assert identify_weights("tiny") == "tiny"


def test_a_run_whose_checkpoint_states_an_alpha_goes_on(tmp_path: Path) -> None:
    """Its manifest was written when theta was not yet stretched as it was read."""
    now = describe_run(RunConfig(), A13B)
    before = dict(now["model"]) | {"max_position_embeddings": 32768}
    before |= {"rope_theta": 10000.0, "rope_alpha": 1000.0}
    check_changes(now | {"model": before}, now, tmp_path, config=RunConfig())
    other = now | {"model": before | {"rope_alpha": 50.0}}
    with pytest.raises(CheckpointError, match="was trained with other model: rope_theta"):
        check_changes(other, now, tmp_path, config=RunConfig())


def test_an_alpha_that_follows_the_rank_is_the_number_that_it_is() -> None:
    assert SAVED["settings"]["lora_alpha"] == 128  # as checkpoints of earlier runs say it


def test_a_checkpoint_from_before_experts_could_be_quantised_has_them_as_they_came() -> None:
    settings = SAVED["settings"]
    before = {name: value for name, value in settings.items() if name != "expert_weights"}
    saved = {**SAVED, "settings": before}
    now = {**SAVED, "settings": {**settings, "expert_weights": "bf16"}}
    check_changes(saved, now, FOLDER, config=RunConfig())
    now = {**SAVED, "settings": {**settings, "expert_weights": "nf4"}}
    with pytest.raises(CheckpointError, match=r"expert_weights \(bf16, now nf4\)"):
        check_changes(saved, now, FOLDER, config=RunConfig())


IDENTITY = {
    "samples": "abc",
    "rows": {"seed": 1},
    "settings": {"mode": "auto"},
    "files": {"a.jsonl": {"sha256": "0", "weight": 1.0}},
    "tokenizer": "t",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "rank-00000.safetensors").touch()
    manifest = make_manifest({"rank-00000.safetensors": {}}, fingerprints={"data": IDENTITY})
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_the_same_data_passes(checkpoint: Path) -> None:
    assert check_same_data(checkpoint, IDENTITY, ignores_change=False)


def test_other_data_is_refused_with_what_differs_and_the_way_around(checkpoint: Path) -> None:
    changed = {**IDENTITY, "rows": {"seed": 2}}
    with pytest.raises(CheckpointError, match=r"other data: seed was 1 and is 2.*--ignore_data"):
        check_same_data(checkpoint, changed, ignores_change=False)
    assert not check_same_data(checkpoint, changed, ignores_change=True)


def test_a_long_list_of_files_is_cut(checkpoint: Path) -> None:
    files = {f"{number}.jsonl": {"sha256": "1", "weight": 1.0} for number in range(20)}
    with pytest.raises(CheckpointError, match="; and 16 more"):
        check_same_data(
            checkpoint, {**IDENTITY, "samples": "d", "files": files}, ignores_change=False
        )

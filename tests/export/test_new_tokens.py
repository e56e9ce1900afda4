"""New tokens from a run's first step to what is served: only their rows change, for any family."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hunyuan_train.cli import main
from hunyuan_train.config.load import dump_config, load_config, tokenizer_folder
from hunyuan_train.config.schema import LoraConfig, ModelConfig, RunConfig, TrainConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.export.check import check_adapter, check_model
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model, read_prompts
from hunyuan_train.export.huggingface_folder import describe_release
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import read_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.build import native_config
from hunyuan_train.model.find_model import find_model
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.shipped import TINY_TOKENIZER
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import train_step
from tests.batches import batch_of
from tests.engines import end_engines, my_share, resume, save_checkpoint, small_engine
from tests.families.grammar.test_new_tokens import TEXT, without_gaps, write_words
from tests.families.hy_v3_folder import SHAPE as HY_V3_SHAPE
from tests.families.hy_v3_folder import write_hy_v3
from tests.ranks import run_ranks, run_together
from tests.released import SHAPE as A13B_SHAPE
from tests.released import read_released, write_released

MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
LORA = LoraConfig(use_lora=True, lora_rank=8, lora_target_modules="attention,experts")
STEP = "step-000003"


class Case(NamedTuple):
    """What is trained, and how it is split."""

    family: str
    has_lora: bool
    stage: int
    expert_size: int
    optimizer: str = "adamw"
    has_room: bool = False  # for the new rows in the matrices of the base

    @property
    def name(self) -> str:
        return "-".join(str(one) for one in self)


def fit(shape: ModelShape, words: Tokenizer, case: Case) -> ModelShape:
    """A model of this vocabulary, with some rows to spare or none."""
    return replace(
        shape,
        vocab_size=words.vocab_size + (14 if case.has_room else 0),
        pad_token_id=words.pad_id,
        bos_token_id=None,
        eos_token_id=words.eos_id,
        eod_token_id=None,
    )


def prepare(folder: Path, case: Case) -> Path:
    """A base, a file of new tokens, and the settings of a run."""
    here = folder / case.name
    here.mkdir()
    dtype = torch.bfloat16 if case.optimizer == "lean" else torch.float32
    if case.family == "hy_v3":
        without_gaps(here / "words")
        words = load_tokenizer(here / "words")
        write_hy_v3(here / "base", shape=fit(HY_V3_SHAPE, words, case), dtype=dtype)
    else:
        words = load_tokenizer(TINY_TOKENIZER)
        write_released(here / "base", shape=fit(A13B_SHAPE, words, case), dtype=dtype)
    for file in words.folder.iterdir():
        (here / "base" / file.name).write_bytes(file.read_bytes())
    model = ModelConfig(
        model_name_or_path=str(here / "base"),
        add_tokens=str(write_words(here)),
        freeze=None if case.has_lora else "*",
    )
    train = TrainConfig(output_dir=str(here / "run"), bf16=False)
    (here / "run").mkdir()
    lora = LORA if case.has_lora else LoraConfig()
    dump_config(RunConfig(model=model, train=train, lora=lora), here / "run/config.yaml")
    return here


def batches_with_new_tokens(vocab_size: int) -> list[Batch]:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, vocab_size, 24) for _ in range(4)]
    for document in documents:
        document[[3, 12, 18]] = vocab_size - 3 + generator.integers(0, 3, 3)
    return [batch_of([document], [8]) for document in documents]


def train_and_export(folder: Path, case: Case, *, resumes: bool = False) -> list[float]:
    config = load_config(["--config", str(folder / "run/config.yaml")])
    words = load_tokenizer(tokenizer_folder(config.model), config.model.add_tokens)
    shape, source = find_model(config.model, words, seed=0)
    engine = small_engine(
        stage=case.stage,
        expert_size=case.expert_size,
        optimizer=case.optimizer,
        is_bf16=case.optimizer == "lean",
        model=config.model,
        lora=config.lora,
        shape=shape,
        source=source,
    )
    losses = []
    if resumes:
        resume(engine, folder / "run/checkpoints" / STEP)
    for _ in range(0 if resumes else 3):
        batches = my_share(batches_with_new_tokens(words.vocab_size))
        losses.append(train_step(engine, SFT, batches, learning_rate=1e-2).loss)
    if not resumes:
        checkpoint = folder / "run/checkpoints" / STEP
        save_checkpoint(engine, TrainerState(), checkpoint)
    live = folder / ("again" if resumes else "live")
    release = describe_release(config, shape, source)
    trained = read_prompts(engine, shape, written_dtype=release.dtype)
    if case.has_lora:
        export_adapter(
            engine,
            live,
            config.lora,
            shape,
            base_model=str(folder / "base"),
            new_tokens=words.new_tokens,
            check=partial(check_adapter, trained, source),
        )
    else:
        export_model(engine, live, release, source, check=partial(check_model, trained))
    end_engines()
    return losses


def check_rows(base: Path, tuned: Path, first: int) -> None:
    """All rows but the new ones are the base's, bit for bit; the new ones were trained."""
    before, after = read_tensors(base), read_tensors(tuned)
    assert before.keys() == after.keys()
    for name in MATRICES:
        if name not in before:
            continue  # tied
        rows = min(len(before[name]), first)
        assert torch.equal(after[name][:rows], before[name][:rows]), name
        spare = before[name][first + 3 :]
        assert torch.equal(after[name][first + 3 :], spare), name
        new = after[name][first : first + 3]
        assert len(new) == 3
        spelled = load_tokenizer(base).encode("δοκιμή")
        start = before[name][spelled].float().mean(0)
        assert 1e-3 < (new[2].float() - start).abs().max() < 0.1, name  # after 3 steps of 0.01


def read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors.index.json").exists():
        return read_released(folder)
    return load_file(folder / "model.safetensors")


def check_served(folder: Path, first: int) -> None:
    """Transformers reads the ids and sizes of training; our own loader too."""
    ours = load_tokenizer(folder)
    ids = ours.encode(TEXT)
    assert [one for one in ids if one >= first] == [first, first + 1, first + 2, first]
    assert AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False).input_ids == ids
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == read_shape(folder).vocab_size >= first + 3


def check_case(folder: Path, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_tokenizer(folder / "base").vocab_size
    later = folder / "later"
    export_stopped_run(open_stopped_run(folder / "run/checkpoints" / STEP, {}), later)
    sums = {one: (folder / one / "SHA256SUMS").read_text() for one in ("live", "later")}
    assert sums["live"] == sums["later"]
    tuned = folder / "live"
    if case.has_lora:
        tuned = folder / "merged"
        assert main(["merge", str(folder / "base"), str(folder / "live"), str(tuned)]) == 0
        check_merged_as_peft_does(folder, tuned)
    check_rows(folder / "base", tuned, first)
    check_served(tuned, first)
    for served in {tuned, folder / "live"}:
        capsys.readouterr()
        asked = ("--prompt", TEXT, "--max_new_tokens", "2", "--json")
        assert main(["chat", str(served), *asked]) == 0
        assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] in (1, 2)


def check_merged_as_peft_does(folder: Path, merged: Path) -> None:
    shape = read_shape(merged)
    plain = AutoModelForCausalLM.from_pretrained(
        folder / "base", config=native_config(read_shape(folder / "base")), dtype=torch.float32
    )
    plain.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    adapted = peft.PeftModel.from_pretrained(plain, folder / "live")
    served = AutoModelForCausalLM.from_pretrained(
        merged, config=native_config(shape), dtype=torch.float32
    )
    ids = torch.arange(shape.vocab_size - 40, shape.vocab_size)[None]
    with torch.no_grad():
        ours, theirs = (one(input_ids=ids, use_cache=False).logits for one in (served, adapted))
    assert (ours - theirs).abs().max() < 1e-4


IN_CI = (Case("hy_v3", True, 3, 2), Case("a13b", False, 3, 2))
SLOW = (
    Case("hy_v3", False, 2, 0),
    Case("hy_v3", True, 3, 1, has_room=True),
    Case("a13b", True, 3, 2),
    Case("hy_v3", False, 3, 2, optimizer="lean", has_room=True),
)


@pytest.mark.parametrize("cases", [IN_CI, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_only_rows_of_new_tokens_change(tmp_path, cases, capsys) -> None:
    prepared = tuple((prepare(tmp_path, case), case) for case in cases)
    results = run_together(train_and_export, 2, prepared)
    for (folder, case), ranks in results.items():
        assert ranks[0] == ranks[1]  # the loss is that of all ranks
        check_case(folder, case, capsys)


@pytest.mark.slow
def test_another_split_takes_them_over(tmp_path: Path) -> None:
    case = Case("hy_v3", True, 3, 2)
    folder = prepare(tmp_path, case)
    run_together(train_and_export, 2, ((folder, case),))
    run_ranks(partial(train_and_export, resumes=True), 1, folder, case._replace(expert_size=1))
    sums = [(folder / one / "SHA256SUMS").read_text() for one in ("live", "again")]
    assert sums[0] == sums[1]

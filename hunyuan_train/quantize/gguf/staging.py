"""The folder that llama.cpp's converter is given: the model's weights, described in its words."""

import json
import shutil
from pathlib import Path

from hunyuan_train.export.companions import check_inside
from hunyuan_train.export.huggingface_folder import (
    Release,
    create_weight_files,
    read_locations,
    write_weights,
)
from hunyuan_train.export.served_config import write_config
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.released_files import INDEX, weight_files
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.progress import show_progress
from hunyuan_train.quantize.gguf.llama_cpp import SCRIPTS
from hunyuan_train.quantize.gguf.source import (
    RANK_FILE,
    TOKENIZER_FILE,
    find_vocabulary,
    has_fused_experts,
)

TOKENIZER_CODE, TOKENIZER_CLASS = "tokenization_ranks", "RanksTokenizer"
# What says how dialogues are written and where answers end, whatever holds the vocabulary.
DESCRIPTIONS = ("chat_template*", "generation_config.json", "special_tokens_map.json")


def stage(folder: Path, staged: Path, shape: ModelShape) -> None:
    """Fill a new folder from a model's: weights are linked, or written one by one if fused."""
    staged.mkdir(parents=True)
    source = SafetensorsFolder.open(folder, shape)
    if has_fused_experts(folder, shape):
        create_weight_files(staged, Release(shape=shape, dtype=source.dtype, companions=()))
        locations = read_locations(staged)
        num_bytes = sum(one.num_bytes for one in locations.values())
        with show_progress("separating experts", num_bytes) as advance:
            write_weights(source, locations, advance)
    else:
        for file in [*weight_files(folder), folder / INDEX]:
            if file.exists():
                (staged / file.name).symlink_to(file.resolve())
    base = read_json_object(folder / "config.json")
    write_config(staged, shape, source.dtype, base=base)
    for pattern in DESCRIPTIONS:
        for file in folder.glob(pattern):
            shutil.copyfile(check_inside(file), staged / file.name)
    if find_vocabulary(folder, shape) == RANK_FILE:
        _stage_ranks(folder, staged, shape)
    else:
        for name in (TOKENIZER_FILE, "tokenizer_config.json"):
            shutil.copyfile(check_inside(folder / name), staged / name)


def _stage_ranks(folder: Path, staged: Path, shape: ModelShape) -> None:
    """Put a vocabulary of ranks there, with code of ours that reads it; the folder's is not run."""
    tokenizer = load_tokenizer(folder)
    shutil.copyfile(check_inside(folder / RANK_FILE), staged / RANK_FILE)
    shutil.copyfile(SCRIPTS / f"{TOKENIZER_CODE}.py", staged / f"{TOKENIZER_CODE}.py")
    special_ids = {token: tokenizer.special_id(token) for token in tokenizer.special_tokens}
    ranks = {
        "rank_file": RANK_FILE,
        "split_pattern": tokenizer.split_pattern,
        "special_tokens": special_ids,
        "vocab_size": shape.vocab_size,
    }
    described = {
        "tokenizer_class": TOKENIZER_CLASS,
        "auto_map": {"AutoTokenizer": [f"{TOKENIZER_CODE}.{TOKENIZER_CLASS}", None]},
        "eos_token": tokenizer.grammar.controls.end,
        "pad_token": tokenizer.grammar.controls.pad,
    }
    for name, content in (("ranks.json", ranks), ("tokenizer_config.json", described)):
        (staged / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

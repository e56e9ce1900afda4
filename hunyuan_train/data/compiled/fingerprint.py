"""Which samples a run reads in which order, as its checkpoints remember it.

A position in the data means something only where all of this is the same again.
"""

from typing import Any

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.data.shuffle import TABLE_LENGTH

Identity = dict[str, Any]  # plain JSON, the form in which it comes back from a checkpoint

# Runs from before there was a keyed order name none.
DRAWN = "drawn as a whole"
KEYED = (
    f"keyed, as it is above {TABLE_LENGTH:,} samples by now (the version that began the run goes "
    "on in its own)"
)


def identify_data(dataset: Dataset, config: DataConfig, *, seed: int) -> Identity:
    """`samples` and `rows` decide what is read; the rest is there to say why they differ."""
    sources = zip(dataset.paths, dataset.source_hashes, dataset.source_weights, strict=True)
    return {
        "samples": dataset.fingerprint,
        "rows": {
            "max_seq_length": config.max_seq_length,
            "packing": config.packing,
            "seed": seed,
            "order": _name_order(dataset),
        },
        "settings": {
            "mode": config.mode,
            "history": config.history,
            "overlong": config.overlong,
            "now": config.now,
            "data_policy": config.data_policy,
            "eval_fraction": config.eval_fraction,
        },
        "files": {path: {"sha256": digest, "weight": weight} for path, digest, weight in sources},
        "tokenizer": dataset.tokenizer_hash,
    }


def _name_order(dataset: Dataset) -> str:
    """How samples are shuffled: the same name gives the same order of the same samples."""
    shown = dataset.times_shown()
    num_shown = sum(len(units) * num_whole + num_extra for units, num_whole, num_extra in shown)
    longest = max(num_shown, *(len(units) for units, _, _ in shown))
    return DRAWN if longest <= TABLE_LENGTH else KEYED


def list_differences(saved: Identity, current: Identity) -> list[str]:
    """What is not as it was, in words; nothing where both read the same samples in one order."""
    differences = _compare_values({"order": DRAWN} | saved["rows"], current["rows"])
    if saved["samples"] == current["samples"]:
        return differences
    differences += _compare_values(saved["settings"], current["settings"])
    differences += _compare_files(saved["files"], current["files"])
    if saved["tokenizer"] != current["tokenizer"]:
        differences.append("the tokenizer is another")
    return differences or ["this version of the program makes other samples of the same data"]


def _compare_values(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {saved[name]} and is {value}"
        for name, value in current.items()
        if saved[name] != value
    ]


def _compare_files(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    differences = [f"{path} is new" for path in current if path not in saved]
    differences += [f"{path} is gone" for path in saved if path not in current]
    for path in saved.keys() & current.keys():
        then, now = saved[path], current[path]
        if then["sha256"] != now["sha256"]:
            differences.append(f"{path} has another content")
        if then["weight"] != now["weight"]:
            differences.append(f"the weight of {path} was {then['weight']:g}, is {now['weight']:g}")
    return sorted(differences)

"""A checkpoint on disk: one file of tensors per rank and a manifest that vouches for all of them.

    runs/tiny/checkpoints/step-000120/
        manifest.json              where the run stood, what each file holds, sizes and checksums
        rank-00000.safetensors     master weights and optimizer states of rank 0's ranges

It is written as `step-000120.incomplete` and renamed when every file is on disk, so a folder with
the final name is whole. Tensors are ranges of released tensors in disguise (see
`families/tables.py`), which any other split of the model can read. Nothing in it is pickled.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.json_file import read_bytes
from hunyuan_train.optim.records import MASTER

FORMAT_VERSION = 4
READ_VERSIONS = (3, FORMAT_VERSION)  # files of format 3 are summed by SHA-256, and as a whole only
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step-(\d{6,})")
DIGEST = "sha256"  # of the rest of the manifest, and of files that earlier versions wrote
SUM = "xxh3_128"  # of a file
TENSOR_SUMS = "tensor_sums"  # of each tensor of a file, in 128 bits of XXH3, by name
MAX_MANIFEST_BYTES = 2**30  # a thousand ranks take a tenth of it
# What every manifest holds beside the format.
FIELDS: dict[str, type] = {
    "files": dict,
    "state": dict,
    "kinds": list,
    "is_model_only": bool,
    "optimizer_step_count": int,
    "fingerprints": dict,
}


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return output_dir / "checkpoints" / f"step-{step:06d}"


def rank_file(rank: int) -> str:
    """File name of one rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Published checkpoints of a run, oldest first."""
    found = (output_dir / "checkpoints").glob("step-*")
    named = [path for path in found if FOLDER_NAME.fullmatch(path.name)]
    return sorted((path for path in named if (path / MANIFEST).exists()), key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def find_candidates(resume_from_checkpoint: str, output_dir: Path) -> list[Path]:
    """The checkpoints that `--resume_from_checkpoint` admits, the best one first.

    Raises:
        CheckpointError: the given folder is no published checkpoint.
    """
    if resume_from_checkpoint == "auto":
        return list_checkpoints(output_dir)[::-1]
    folder = Path(resume_from_checkpoint)
    if not (folder / MANIFEST).exists():
        raise CheckpointError(
            f"resume_from_checkpoint is {folder}, which holds no {MANIFEST} and so is no complete "
            "checkpoint; give a folder like runs/NAME/checkpoints/step-000120, or auto"
        )
    return [folder]


def find_checkpoint(
    resume_from_checkpoint: str, output_dir: Path, *, skip: Callable[[str], None] = lambda _: None
) -> Path | None:
    """The first candidate whose files are there in their sizes; None where auto finds none.

    Args:
        resume_from_checkpoint: "auto", or a folder.
        output_dir: of the run.
        skip: told of each one that is passed over, and why.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used.
    """
    faults = []
    for folder in find_candidates(resume_from_checkpoint, output_dir):
        try:
            read_manifest(folder)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            for fault in faults:
                skip(fault)
            return folder
    refuse_all(faults, output_dir, resume_from_checkpoint)
    return None


def refuse_all(faults: list[str], output_dir: Path, resume_from_checkpoint: str) -> None:
    """Stop rather than start afresh where checkpoints exist but none is good.

    Raises:
        CheckpointError: naming every fault, if there are any.
    """
    if not faults:
        return
    told = "; ".join(faults)
    if resume_from_checkpoint == "auto":
        raise CheckpointError(
            f"no checkpoint can be used: {told}. Bring a good copy back, or start anew in another "
            f"output_dir than {output_dir}"
        )
    folder = Path(resume_from_checkpoint)
    others = [path.name for path in list_checkpoints(folder.absolute().parent.parent)]
    others = [name for name in others if name != folder.name]
    remedy = f"; or take one of {', '.join(others)} beside it" if others else ""
    raise CheckpointError(
        f"resume_from_checkpoint is {folder}, which cannot be used: {told}. Bring a good copy "
        f"back{remedy}, or give auto for the newest intact one in {output_dir}"
    )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> Path:
    """Write the manifest with a checksum of its own."""
    path = folder / MANIFEST
    sealed = {**manifest, DIGEST: _digest_of(manifest)}
    path.write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check that the files it names are there, in the sizes it names.

    Raises:
        CheckpointError: not readable, another format, or a file missing or cut short.
    """
    path = folder / MANIFEST
    try:
        manifest, is_sealed = _read_sealed(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not is_sealed:  # then nothing in it is to be believed, its format least of all
        raise CheckpointError(f"{path} is not what was written: its checksum differs")
    if manifest.get("format_version") not in READ_VERSIONS:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format_version')}, and this version of "
            f"hunyuan_train reads formats {READ_VERSIONS[0]} to {READ_VERSIONS[-1]}; go on from it "
            "with the version that wrote it, or export it with that version and start from the "
            "exported model"
        )
    wrong = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    if not wrong:
        is_right = {
            "state": _is_state(manifest["state"]),
            "files": _are_entries(manifest["files"]),
            "kinds": _are_kinds(manifest["kinds"]),
            "fingerprints": all(isinstance(one, dict) for one in manifest["fingerprints"].values()),
            "optimizer_step_count": _is_count(manifest["optimizer_step_count"]),
        }
        wrong = [name for name in is_right if not is_right[name]]
    if wrong:
        raise CheckpointError(
            f"{path} is not what a run writes ({', '.join(wrong)}); it was made by something else: "
            "take another checkpoint"
        )
    _check_files(folder, manifest["files"])
    return manifest


def _read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a manifest, and whether its own checksum is right.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    try:
        # A loss that is not finite stands in a manifest, so this is not the strict reading.
        manifest = json.loads(read_bytes(path, max_bytes=MAX_MANIFEST_BYTES))
        if not isinstance(manifest, dict):
            raise ValueError("it holds no JSON object")
        return manifest, manifest.pop(DIGEST, None) == _digest_of(manifest)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return type(value) in (int, float)  # a loss may be infinite


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_position(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"epoch", "row"} and _are_counts(value)


def _is_health(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("recent_losses"), list):
        return False
    counts = {name: count for name, count in value.items() if name != "recent_losses"}
    # The last was the name of the second in the first checkpoints.
    is_known = counts.keys() <= {"num_bad_in_a_row", "num_rollbacks", "num_returns"}
    return is_known and _are_counts(counts) and all(map(_is_number, value["recent_losses"]))


# What `TrainerState` becomes in JSON; the first three were never left out.
STATE: dict[str, Callable[[object], bool]] = {
    "step": _is_count,
    "position": _is_position,
    "health": _is_health,
    "tokens_seen": _is_count,
    "best_value": lambda value: value is None or _is_number(value),
    "best_step": lambda value: value is None or _is_count(value),
    "num_worse": _is_count,
    "samples_seen": _are_counts,
    "tokens_by_source": _are_counts,
}


def _is_state(state: dict[str, Any]) -> bool:
    return {"step", "position", "health"} <= state.keys() <= STATE.keys() and all(
        STATE[name](value) for name, value in state.items()
    )


def _are_kinds(kinds: list[Any]) -> bool:
    return all(isinstance(one, str) for one in kinds) and (
        MASTER in kinds and len(set(kinds)) == len(kinds)
    )


def _are_ranges(ranges: object, num_bytes: int) -> bool:
    """Whether each is [first expert, start, stop, *shape], and no larger than its file."""
    if not isinstance(ranges, dict):
        return False
    for numbers in ranges.values():
        if not isinstance(numbers, list) or len(numbers) < 4:
            return False
        if not all(map(_is_count, numbers)):
            return False
        _, start, stop, *shape = numbers
        if not start <= stop <= math.prod(shape) or stop - start > num_bytes:
            return False
    return True


def _are_sums(sums: object) -> bool:
    return isinstance(sums, dict) and all(isinstance(one, str) for one in sums.values())


def _are_entries(files: dict[str, Any]) -> bool:
    """Whether the files are those of ranks 0 to N - 1, and each has a size and a checksum."""
    return files.keys() == {rank_file(rank) for rank in range(max(1, len(files)))} and all(
        isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get(SUM, entry.get(DIGEST)), str)
        and _are_sums(entry.get(TENSOR_SUMS, {}))
        and _are_ranges(entry.get("ranges"), entry["size"])
        for entry in files.values()
    )


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare the sizes of files with those of the manifest.

    Raises:
        CheckpointError: one is missing, cut short, or no ordinary file.
    """
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{path} {found}, the manifest says {entry['size']}")


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

"""Reads a run that wandb wrote offline, by wandb's own records.

The file is a LevelDB log: blocks of 32 KiB, in them pieces with a header of checksum, length and
kind (whole, first, middle, last), behind a header of wandb's.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

FILE_HEADER = struct.Struct("<4sHB")
PIECE_HEADER = struct.Struct("<IHB")
BLOCK_BYTES = 32768
WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """The records of one `.wandb` file."""
    content = path.read_bytes()
    assert FILE_HEADER.unpack_from(content)[0] == b":W&B"
    position, pieces = FILE_HEADER.size, b""
    while position + PIECE_HEADER.size <= len(content):
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < PIECE_HEADER.size:
            position += room
            continue
        _, length, kind = PIECE_HEADER.unpack_from(content, position)
        position += PIECE_HEADER.size
        piece = content[position : position + length]
        pieces = piece if kind in (WHOLE, FIRST) else pieces + piece
        position += length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record


def read_runs(folder: Path) -> tuple[set[str], dict[str, list[Any]]]:
    """Ids of the offline runs under a folder, and every value logged under each name."""
    ids: set[str] = set()
    values: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in read_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                values.setdefault(name, []).append(json.loads(item.value_json))
    return ids, values


def read_alerts(folder: Path) -> list[str]:
    """Texts of the alerts that the offline runs under a folder sent."""
    return [
        record.alert.text
        for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        for record in read_records(path)
        if record.HasField("alert")
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """What the offline runs under a folder say that they are made of."""
    return {
        item.key: json.loads(item.value_json)
        for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        for record in read_records(path)
        for update in ([record.run.config] if record.HasField("run") else [record.config])
        for item in update.update
        if item.key
    }

"""Notes beside the compiled data, which spare a later start the same work.

Each is sealed by a checksum over what it says and what it says it of. A note that was damaged,
edited or moved to another place is not there, and the work is done again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_memo(subject: object, content: dict[str, Any]) -> str:
    """The text of a note; `subject` is what it is about, as JSON has it."""
    return json.dumps({"content": content, "sha256": _hash_memo(subject, content)})


def read_memo(path: Path, subject: object) -> dict[str, Any] | None:
    """What a note says; None where none is there, or it is not what was written of this subject."""
    try:
        memo = json.loads(path.read_bytes())
        content = memo["content"]
        is_ours = isinstance(content, dict) and memo["sha256"] == _hash_memo(subject, content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if is_ours else None


def _hash_memo(subject: object, content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([subject, content], sort_keys=True).encode()).hexdigest()

"""Chat templates that lie in a folder, and whether they are a grammar's own."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hunyuan_train.families.grammar.interface import Grammar

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


def has_other_template(folder: Path, grammar: Grammar) -> bool:
    """Whether a folder holds a chat template that neither the vendor nor we wrote."""
    known = {hash_template(grammar.chat_template), *grammar.known_templates}
    return not {hash_template(text) for text in _find_templates(folder)} <= known


def _find_templates(folder: Path) -> list[str]:
    config, path = read_if_whole(folder / CONFIG), folder / TEMPLATE
    templates = config.get("chat_template") if isinstance(config, dict) else None
    found = templates if isinstance(templates, list) else [templates]
    texts = [one.get("template") if isinstance(one, dict) else one for one in found]
    if path.is_file():
        texts.append(path.read_bytes().decode("utf-8", "replace"))
    return [text for text in texts if isinstance(text, str)]


def read_if_whole(path: Path) -> Any:  # noqa: ANN401  # any JSON
    """The content of a file that may be missing; one that is broken says nothing either."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def hash_template(text: str) -> str:
    """SHA-256 of a template; blanks at its ends and the line ends of an editor change nothing."""
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()

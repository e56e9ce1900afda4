"""What a setting says when it names a model or a data set on a hub, and where that is kept here."""

import re
from dataclasses import dataclass
from os.path import exists
from pathlib import Path
from typing import Literal

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import MODELSCOPE_PUBLISHER, PUBLISHER

Hub = Literal["huggingface", "modelscope"]
Kind = Literal["model", "dataset"]

TITLES: dict[Hub, str] = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
PREFIXES: dict[str, Hub] = {
    "hf": "huggingface",
    "huggingface": "huggingface",
    "modelscope": "modelscope",
}
SHOWN_FOLDER = "~/.cache/hunyuan_train/hub"  # in help, which is the same for every user
DEFAULT_FOLDER = Path(SHOWN_FOLDER).expanduser()

_PREFIX = rf"(?:(?P<prefix>{'|'.join(PREFIXES)}):)"
_WORD = r"[A-Za-z0-9][\w.-]{0,254}"  # no longer than the name of a file
_REVISION = r"(?:@(?P<revision>[\w.][\w./-]*))?"
_MODEL = re.compile(rf"{_PREFIX}?(?P<repo>{_WORD}/{_WORD}){_REVISION}")
_DATA = re.compile(
    rf"{_PREFIX}(?P<repo>{_WORD}(?:/{_WORD})?)(?:/(?P<subset>{_WORD}))?{_REVISION}"
    r"(?::(?P<split>[A-Za-z_][\w.-]*))?(?::(?P<weight>[\d.][^:/]*))?"
)
_PREFIXED = re.compile(rf"{_PREFIX}.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteName:
    """A model, or a part of a data set, on a hub."""

    hub: Hub
    kind: Kind
    repo: str  # owner/name
    revision: str | None = None  # branch, tag or commit; None: what the hub serves by default
    subset: str | None = None  # of a data set: what its card calls a configuration
    split: str | None = None
    weight: str | None = None  # as written behind the name of a data set

    def __str__(self) -> str:
        """As an error names it."""
        title = f"{self.repo} on {TITLES[self.hub]}"
        return f"{title} at {self.revision}" if self.revision else title

    @property
    def written(self) -> str:
        """The name as a setting holds it."""
        prefix = "hf" if self.hub == "huggingface" else self.hub
        parts = [f"{prefix}:{self.repo}", f"/{self.subset}" if self.subset else ""]
        parts += [f"@{self.revision}" if self.revision else ""]
        parts += [f":{self.split}" if self.split else ""]
        return "".join(parts)

    def folder(self, download_dir: Path) -> Path:
        """Where it is kept, by itself: another revision or split has another folder."""
        name = self.repo.replace("/", "--")
        if self.revision:
            name += "@" + self.revision.replace("/", "--")
        name += "".join(f".{part}" for part in (self.subset, self.split) if part)
        return download_dir / self.hub / f"{self.kind}s" / name


def parse_model_name(text: str, *, hub: Hub) -> RemoteName | None:
    """The model that a setting names on a hub; None where it names a path.

    Args:
        text: `owner/name`, `hf:owner/name` or `modelscope:owner/name`, each with an optional
            `@revision`. Without a hub before it, a path that exists here is a path, and so is one
            whose first folder does.
        hub: the one that is meant where the text says none.

    Raises:
        ConfigError: it begins with the name of a hub and goes on as no name of a model does.
    """
    match = _MODEL.fullmatch(text)
    if match is None:
        if _PREFIXED.fullmatch(text) and not exists(text):
            raise ConfigError(
                f"model_name_or_path is {text}; the name of a model on a hub is written "
                "hf:OWNER/NAME or modelscope:OWNER/NAME, with @REVISION where one is meant"
            )
        return None
    if match["prefix"] is None and (exists(text) or exists(text.split("/")[0])):
        return None
    chosen = PREFIXES[match["prefix"]] if match["prefix"] else hub
    repo = match["repo"]
    return RemoteName(
        hub=chosen,
        kind="model",
        repo=_name_there(repo, chosen),
        revision=match["revision"],
    )


def parse_data_name(text: str) -> RemoteName | None:
    """The data set that one of several names means on a hub; None where it is a path.

    Args:
        text: `hf:owner/name[/subset][@revision][:split][:weight]`, or with `modelscope:`.

    Raises:
        ConfigError: it begins with the name of a hub and goes on as no name of a data set does.
    """
    if not _PREFIXED.fullmatch(text) or exists(text):
        return None
    match = _DATA.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text} is no name of a data set on a hub; write hf:OWNER/NAME or "
            "modelscope:OWNER/NAME, then /SUBSET, @REVISION, :SPLIT and :WEIGHT as they are needed"
        )
    hub = PREFIXES[match["prefix"]]
    return RemoteName(
        hub=hub,
        kind="dataset",
        repo=_name_there(match["repo"], hub),
        revision=match["revision"],
        subset=match["subset"],
        split=match["split"],
        weight=match["weight"],
    )


def _name_there(repo: str, hub: Hub) -> str:
    """A repository as its hub has it: the publisher of Hunyuan has two names."""
    owner, _, name = repo.rpartition("/")
    if hub == "modelscope" and owner == PUBLISHER:
        return f"{MODELSCOPE_PUBLISHER}/{name}"
    return repo

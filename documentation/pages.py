"""Takes a page of the documentation apart: headings, fenced blocks, links, figures.

A fenced block of commands may be marked by a comment on the line before it:

    <!-- slow -->                 tests run it, but not in CI
    <!-- needs: 8 GPUs, ... -->   no test runs it; its flags are checked
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
CHINESE = DOCS / "zh"
README, CHINESE_README = REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"
REFERENCE = DOCS / "reference"
TASKS = (
    *(
        "index",
        "install",
        "laptop",
        "one-gpu",
        "one-node",
        "many-hosts",
        "slurm",
        "data",
        "recipes",
    ),
    *("preferences", "long-context", "memory", "checkpoints", "monitoring", "serve-and-quantise"),
    *("proof", "troubleshooting", "faq", "comparison", "glossary", "hubs", "watch"),
    *("containers", "plain_text", "one_gpu_adapters", "models", "tool_use"),
    "quantization",
)
EXAMPLES = (REPOSITORY / "examples/preferences.md",)  # which tests/test_examples.py runs
SHELLS = ("bash", "sh")
BLOCK = re.compile(r"(?:^<!-- (slow|needs: [^\n]+) -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e-?\d+)?")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block, and the mark before it ("slow", "needs: ..." or nothing)."""

    mark: str
    language: str
    text: str

    @property
    def is_shell(self) -> bool:
        """Whether a reader pastes it into a shell."""
        return self.language in SHELLS


def task_pages() -> list[Path]:
    """README and the pages by task, in English."""
    return [README, *(DOCS / f"{name}.md" for name in TASKS)]


def bilingual_pages() -> list[Path]:
    """Every page that stands in both languages, in English."""
    return [*task_pages(), *EXAMPLES]


def in_chinese(page: Path) -> Path:
    """The page in Chinese."""
    if page in EXAMPLES:
        return CHINESE / f"example_{page.name}"
    return CHINESE_README if page == README else CHINESE / page.name


def all_pages() -> list[Path]:
    """Every page that the site shows."""
    others = ("ARCHITECTURE.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "data/README.md")
    pages = [*DOCS.rglob("*.md"), *(REPOSITORY / "examples").glob("*.md")]
    return sorted([README, CHINESE_README, *pages, *(REPOSITORY / one for one in others)])


def read_blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    return [Block(mark or "", language, body) for mark, language, body in BLOCK.findall(text)]


def prose_of(text: str) -> str:
    """A page without fenced blocks and comments."""
    return COMMENT.sub("", BLOCK.sub("", text))


def headings_of(text: str) -> list[tuple[int, str]]:
    """Level and words of each heading."""
    lines = prose_of(text).splitlines()
    found = [re.match(r"(#+) (.+)", line) for line in lines]
    return [(len(one[1]), one[2].strip()) for one in found if one]


def anchors_of(text: str) -> set[str]:
    """What a link may name behind a #, as GitHub and the site make it of headings."""
    return {slug(words) for _, words in headings_of(text)}


def slug(words: str) -> str:
    """The anchor of a heading."""
    kept = re.sub(r"[^\w\- ]", "", words.replace("`", "").lower())
    return kept.replace(" ", "-")


def links_of(text: str) -> list[tuple[str, str]]:
    """Words and target of each link and picture outside code."""
    return [(words, target) for _, words, target in LINK.findall(CODE.sub("", prose_of(text)))]


def pictures_of(text: str) -> list[str]:
    """File names of the pictures."""
    return [Path(target).name for mark, _, target in LINK.findall(prose_of(text)) if mark]


def numbers_of(text: str) -> set[str]:
    """The figures in prose, tables and inline code."""
    prose = LINK.sub(r"\2", prose_of(text))
    return set(NUMBER.findall(prose))

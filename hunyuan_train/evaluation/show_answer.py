"""An answer on the screen, taken apart."""

from dataclasses import dataclass
from textwrap import shorten

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from hunyuan_train.families.grammar.interface import ParsedOutput

MAX_SHOWN_CHARACTERS = 300  # of an answer that is no answer


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer."""

    mode: str  # fast or slow
    prompt: str
    text: str  # as it was generated
    output: ParsedOutput  # the same, taken apart
    cut_after: int | None  # tokens, where it was not let come to its end


def show_answer(answer: Answer, console: Console) -> None:
    """Print a prompt and what the trained model made of it, taken apart."""
    parsed = answer.output
    content = parsed.content or ""
    lines = [Text(answer.prompt, style="cyan")]
    if not parsed.is_well_formed:
        words = "this answer does not follow the think/answer grammar:"
        if answer.cut_after is not None:
            words = f"this answer was cut after {answer.cut_after:,} tokens:"
        lines.append(Text(words, style="yellow"))
        content = shorten(content, width=MAX_SHOWN_CHARACTERS, placeholder=" ...")
    if parsed.reasoning_content:
        lines.append(Text(f"think   {parsed.reasoning_content}", style="dim"))
    lines.append(Text(f"answer  {content}"))
    if console.is_terminal:
        console.print(Panel(Group(*lines), title=f"{answer.mode} mode", title_align="left"))
    else:
        console.print(f"{answer.mode} mode", *lines, sep="\n", soft_wrap=True)

"""Reads a page of the documentation as what it asks a reader to do: commands, programs, and files to write."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^(?:\$ (.*)|(\^C))$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, the file that it is to be written to, its text, and the line it begins on."""

    language: str
    title: str | None
    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of a `console` block, and what the page shows of its output."""

    text: str
    shown: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        indent = len(found[1])
        inner = "".join(line[indent:] if line.strip() else line for line in found[4].splitlines(keepends=True))
        yield Block(language=found[2], title=found[3], text=inner, line=text[: found.start()].count("\n") + 1)


def commands(block: Block) -> Iterator[Command]:
    r"""Yield the commands of a `console` block: lines behind `$ `, gone on with after a backslash; and `^C`."""
    text, shown = "", list[str]()
    for line in block.text.splitlines():
        begun = _LINE.match(line)
        if text.endswith("\\") and not begun:
            text += "\n" + line
        elif begun:
            if text:
                yield Command(text=text, shown=tuple(shown))
            text, shown = begun[1] or begun[2], []
        else:
            shown.append(line)
    if text:
        yield Command(text=text, shown=tuple(shown))


def is_shown(shown: tuple[str, ...], output: str) -> str | None:
    """Return the first line of what the page shows that the output has not, in its order; `…` stands for anything."""
    lines = iter(output.splitlines())
    for wanted in shown:
        pattern = re.compile(".*".join(map(re.escape, re.split("…", wanted))).rstrip())
        if wanted.strip() not in ("", "…") and not any(pattern.fullmatch(line.rstrip()) for line in lines):
            return wanted
    return None

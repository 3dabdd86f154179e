"""A figure: one measured ratio, its spread, its goal, and how a bench hands it over."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One ratio to a reference of the same run (or an amount, if it has a unit) and what it is to be.

    Args:
        group: The heading under which it stands in docs/performance.md.
        name: What it is of, as `ours / reference`.
        value: The median over the pairs, or the worst over the seeds; None if it could not be taken.
        low: The first quartile over the pairs; None where time is virtual or there is one run only.
        high: The third.
        unit: Of an amount, such as MiB; empty for a ratio.
        goal: What it is to be at most; None if it stands there for comparison only.
        at_least: Whether the goal is to be exceeded instead.
        note: One sentence: what limits it, what it does not say, or why it was not run.
    """

    group: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    note: str = ""

    @classmethod
    def of_pairs(
        cls,
        ratios: Sequence[float],
        *,
        group: str,
        name: str,
        unit: str = "",
        goal: float | None = None,
        at_least: bool = False,
        note: str = "",
    ) -> Self:
        """Return the median of the ratios of interleaved pairs, with its quartiles."""
        low, _, high = quantiles(ratios, method="inclusive") if len(ratios) > 1 else (None, None, None)
        value = median(ratios)
        return cls(
            group=group, name=name, value=value, low=low, high=high, unit=unit, goal=goal, at_least=at_least, note=note
        )

    @property
    def verdict(self) -> str:
        """Say how it stands to its goal: reached, missed, not run, or nothing if it has none."""
        if self.value is None:
            return "not run"
        if self.goal is None:
            return ""
        return "reached" if (self.value >= self.goal if self.at_least else self.value <= self.goal) else "missed"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return the options of a bench: its docstring as help, and `--json FILE` for its figures, one a line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, one JSON object a line")
    return parser


def report(figures: Iterable[Figure], file: Path | None) -> None:
    """Print each figure as it comes, and write it to the file if there is one."""
    if file is not None:
        file.write_text("", encoding="utf-8")
    for figure in figures:
        value = "" if figure.value is None else f"{figure.value:.3f}"
        spread = "" if figure.low is None else f"({figure.low:.3f} to {figure.high:.3f})"
        goal = "" if figure.goal is None else f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
        amount = f"{value:>9} {figure.unit:4} {spread:20} {goal:9}"
        print(f"{figure.name:52} {amount} {figure.verdict:8} {figure.note}".rstrip(), flush=True)
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(figure)) + "\n")


def read(file: Path) -> list[Figure]:
    """Return the figures of a file that `report` wrote."""
    return [Figure(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]

"""`batchmill convert`: rows of a table become requests, by a template."""

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchmill.cli.connect import note
from batchmill.cli.exit import RunExit, Stop
from batchmill.cli.index import Index
from batchmill.cli.output import appearing
from batchmill.cli.table import BadRow, Row, columns_of, kind_of, read_rows, text_of
from batchmill.client.text import shown
from batchmill.spec.limits import PROFILES

_PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_COLUMNS = 12  # that a sentence names
_OTHER_DELIMITERS = frozenset(";\t|,")
_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class BadTemplate(Exception):  # noqa: N818 - it states what is so
    """A template cannot be filled; the text says why."""


class Template:
    """A text with `{column}` in it; a brace that is meant as itself is written twice."""

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            BadTemplate: a brace stands alone, or names nothing.
        """
        self._parts: list[tuple[bool, str]] = []  # whether it is a column, and its name or the text
        end = 0
        for found in _PIECES.finditer(text):
            self._parts.append((False, text[end : found.start()]))
            end = found.end()
            if found[0] in {"{{", "}}"}:
                self._parts.append((False, found[0][0]))
            elif found[1]:
                self._parts.append((True, found[1]))
            else:
                raise BadTemplate(
                    f"{found[0]} at character {found.start() + 1} names no column; "
                    "write {column}, and a brace that is meant as itself twice: {{ or }}"
                )
        self._parts.append((False, text[end:]))

    @property
    def columns(self) -> list[str]:
        """The columns that it names."""
        return list(dict.fromkeys(text for is_column, text in self._parts if is_column))

    def fill(self, row: Row) -> str:
        """Return the text for a row; a column that it has not is empty."""
        return "".join(text_of(row.get(text)) if is_column else text for is_column, text in self._parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What becomes of each row. `sets` are members of the body, `column` that of the custom_ids, None for numbers."""

    model: str
    prompt: Template
    system: Template | None
    endpoint: str
    column: str | None
    max_tokens: int | None
    sets: dict[str, Any]

    def line(self, row: Row, custom_id: str) -> bytes:
        """Return the request line of a row."""
        body: dict[str, Any] = {"model": self.model}
        prompt = self.prompt.fill(row)
        if self.endpoint == _ENDPOINTS[0]:
            system = [] if self.system is None else [{"role": "system", "content": self.system.fill(row)}]
            body["messages"] = [*system, {"role": "user", "content": prompt}]
        else:
            body["input" if self.endpoint == _ENDPOINTS[2] else "prompt"] = prompt
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        request = {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": body | self.sets}
        return msgspec.json.encode(request) + b"\n"


def read_recipe(
    *,
    model: str | None,
    prompt: str | None,
    system: str | None,
    endpoint: str,
    column: str | None,
    max_tokens: int | None,
    sets: Sequence[str],
) -> Recipe:
    """Return what the options say.

    Raises:
        Stop: one makes no sense, or is missing.
    """
    if model is None or prompt is None:
        raise Stop(f"{'--model' if model is None else '--prompt'} is missing.", RunExit.USAGE)
    if endpoint not in _ENDPOINTS:
        raise Stop(f"--endpoint: {endpoint!r} is none of {', '.join(_ENDPOINTS)}.", RunExit.USAGE)
    if system is not None and endpoint != _ENDPOINTS[0]:
        raise Stop(f"--system: {endpoint} has no such message.", RunExit.USAGE)
    return Recipe(
        model=model,
        prompt=_template("--prompt", prompt),
        system=None if system is None else _template("--system", system),
        endpoint=endpoint,
        column=column,
        max_tokens=max_tokens,
        sets=dict(map(_set, sets)),
    )


def convert(source: Path, output: Path, recipe: Recipe, *, delimiter: str | None) -> int:
    """Write a request line for each row of `source`; return how many there are.

    Raises:
        Stop: a column is missing, a row cannot be read, or an id is empty, too long or there twice.
    """
    if output.suffix.lower() != ".jsonl":
        raise Stop(f"{output}: requests are JSONL; let its name end with .jsonl.", RunExit.USAGE)
    if kind_of(source) in {".jsonl", ".ndjson"}:
        _check_first_row(source, recipe)
    else:
        _check_columns(source, columns_of(source, delimiter=delimiter), recipe)
    empty = count = 0
    with ExitStack() as stack:
        ids = stack.enter_context(closing(Index()))
        part = stack.enter_context(appearing(output, reads=[source]))
        stream = stack.enter_context(part.open("wb", buffering=1 << 20))
        try:
            for count, row in enumerate(read_rows(source, delimiter=delimiter), 1):
                stream.write(recipe.line(row, _custom_id(row, count, recipe.column, ids)))
                named = recipe.prompt.columns
                empty += bool(named) and not any(text_of(row.get(name)) for name in named)
        except BadRow as fault:
            raise Stop(f"{source}: {shown(fault)}.", RunExit.BAD_DATA) from fault
        except (ValueError, UnicodeEncodeError) as fault:
            raise Stop(f"{source}: row {count} cannot be written as JSON: {fault}.", RunExit.BAD_DATA) from fault
        stream.flush()
        if not count:
            raise Stop(f"{source} has no row.", RunExit.BAD_DATA)
    if empty:
        note(f"In {empty:,} of {count:,} rows every column that --prompt names is empty; they are requests, too.")
    return count


def row_id(row: Row, number: int, column: str | None) -> str:
    """Return a row's custom_id: what stands in the column, or its number, from 1 on."""
    return f"row-{number}" if column is None else text_of(row.get(column))


def require_columns(path: Path, there: Sequence[str], wanted: Sequence[str], option: str) -> None:
    """Raise Stop for the first column that is not there."""
    for name in wanted:
        if name not in there:
            known = ", ".join(shown(each, 40) for each in there[:_COLUMNS])
            more = f" and {len(there) - _COLUMNS} more" if len(there) > _COLUMNS else ""
            hint = " (is --delimiter right?)" if len(there) == 1 and _OTHER_DELIMITERS & set(there[0]) else ""
            raise Stop(f"{option}: {path} has no column {name!r}; it has {known}{more}{hint}.", RunExit.USAGE)


def _custom_id(row: Row, number: int, column: str | None, ids: Index) -> str:
    custom_id = row_id(row, number, column)
    if column is None:
        return custom_id
    most = PROFILES["open"].max_custom_id
    if not custom_id:
        raise BadRow(f"row {number} has nothing in its column {column!r}, which should be its id")
    if len(custom_id) > most:
        raise BadRow(f"row {number}: its id has {len(custom_id):,} characters, and {most} are allowed")
    first = ids.add(custom_id, number)
    if first is not None:
        raise BadRow(f"row {number}: its id {shown(custom_id, 80)} is that of row {first}, too")
    return custom_id


def _check_columns(source: Path, there: Sequence[str], recipe: Recipe) -> None:
    require_columns(source, there, recipe.prompt.columns, "--prompt")
    if recipe.system is not None:
        require_columns(source, there, recipe.system.columns, "--system")
    if recipe.column is not None:
        require_columns(source, there, [recipe.column], "--id")


def _check_first_row(source: Path, recipe: Recipe) -> None:
    """Look at the first line of JSONL, whose lines need not be alike: a wrong name shows there already."""
    try:
        for row in read_rows(source, delimiter=None):
            _check_columns(source, list(row), recipe)
            return
    except BadRow as fault:
        raise Stop(f"{source}: {shown(fault)}.", RunExit.BAD_DATA) from fault


def _template(option: str, text: str) -> Template:
    try:
        return Template(text)
    except BadTemplate as fault:
        raise Stop(f"{option}: {fault}.", RunExit.USAGE) from fault


def _set(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    if not name or not equals:
        raise Stop(f"--set: {pair!r} is not of the form NAME=VALUE.", RunExit.USAGE)
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text

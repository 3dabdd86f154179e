"""Rows of CSV, TSV, JSONL and Parquet, read and written one after the other: a file may be larger than the memory.

CSV and TSV are the standard library's, which takes every field as the text that it is: 007 stays 007. Parquet is
pyarrow's (extra `convert`).
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from batchmill.cli.exit import RunExit, Stop
from batchmill.client.text import shown

Row = Mapping[str, Any]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON = (".jsonl", ".ndjson")
_KINDS = ", ".join([*_DELIMITERS, *_JSON, ".parquet"])
_BATCH = 1024  # rows
_BUFFER = 1 << 20


class BadRow(Exception):  # noqa: N818 - it states what is so
    """A row cannot be read; the text says which, and why."""


def text_of(value: object) -> str:
    """Return a value as a prompt has it: text as it is, nothing as nothing, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (bool, list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def read_rows(path: Path, *, delimiter: str | None) -> Iterator[Row]:
    """Yield the rows of a file of any kind, by its name's end.

    Raises:
        Stop: it is of no kind that is known, or cannot be read.
        BadRow: a row cannot be read.
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
        elif kind in _JSON:
            yield from _json_rows(path)
        else:
            yield from _csv_rows(path, delimiter or _DELIMITERS[kind])
    except OSError as fault:
        raise Stop(f"{path} cannot be read: {fault.strerror or fault}.", RunExit.USAGE) from fault


def columns_of(path: Path, *, delimiter: str | None) -> list[str]:
    """Return the names of a file's columns, in their order; of JSONL, all names that any line has.

    Raises:
        Stop: it is of no kind that is known, or cannot be read.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return list(_parquet_file(path).schema_arrow.names)
    try:
        if kind in _JSON:
            return list(dict.fromkeys(name for row in read_rows(path, delimiter=None) for name in row))
        with _opened(path) as stream:
            return _header(path, csv.reader(stream, delimiter=delimiter or _DELIMITERS[kind], strict=True))
    except BadRow as fault:
        raise Stop(f"{path}: {shown(fault)}.", RunExit.BAD_DATA) from fault
    except OSError as fault:
        raise Stop(f"{path} cannot be read: {fault.strerror}.", RunExit.USAGE) from fault


def kind_of(path: Path) -> str:
    """Return the end of a file's name that says what it is.

    Raises:
        Stop: it is none that is known.
    """
    kind = path.suffix.lower()
    if kind not in _DELIMITERS and kind not in _JSON and kind != ".parquet":
        raise Stop(f"{path}: its name ends with none of {_KINDS}.", RunExit.USAGE)
    return kind


def write_rows(
    path: Path, part: Path, source: Path, columns: Sequence[str], added: Mapping[str, type], *, delimiter: str | None
) -> "Writer":
    """Return what writes rows to `part`, in the form that `path` is named for.

    Args:
        path: What it will be called.
        part: Where it is written until it is whole.
        source: The input, in whose order the rows come; its Parquet columns stay as they are.
        columns: Those of the input.
        added: Those that come behind them, as str or int.
        delimiter: Between the fields of CSV, if not the usual one.
    """
    kind, names = kind_of(path), [*columns, *added]
    if kind == ".parquet":
        return _ParquetWriter(part, source, columns, added)
    if kind in _JSON:
        return _JsonWriter(part)
    return _CsvWriter(part, names, delimiter or _DELIMITERS[kind])


class Writer:
    """Takes rows, one after the other."""

    def write(self, row: Row) -> None:
        """Take a row."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is held still."""
        raise NotImplementedError


class _CsvWriter(Writer):
    def __init__(self, part: Path, names: Sequence[str], delimiter: str) -> None:
        self._stream = part.open("w", encoding="utf-8", newline="")
        self._rows, self._names = csv.writer(self._stream, delimiter=delimiter, lineterminator="\n"), names
        self._rows.writerow(names)

    def write(self, row: Row) -> None:
        self._rows.writerow([text_of(row.get(name)) for name in self._names])

    def close(self) -> None:
        self._stream.close()


class _JsonWriter(Writer):
    def __init__(self, part: Path) -> None:
        self._stream = part.open("wb", buffering=_BUFFER)

    def write(self, row: Row) -> None:
        self._stream.write(msgspec.json.encode(row, enc_hook=str) + b"\n")

    def close(self) -> None:
        self._stream.close()


class _ParquetWriter(Writer):
    """Columns of a Parquet source are those of its own batches: Python has no value for some of what they may hold."""

    def __init__(self, part: Path, source: Path, columns: Sequence[str], added: Mapping[str, type]) -> None:
        arrow, parquet = _pyarrow()
        kinds = {str: arrow.string(), int: arrow.int64()}
        file = _parquet_file(source) if kind_of(source) == ".parquet" else None
        fields = [arrow.field(name, arrow.string()) for name in columns] if file is None else [*file.schema_arrow]
        self._added = [arrow.field(name, kinds[kind]) for name, kind in added.items()]
        self._texts = columns if file is None else ()
        self._arrow, self._schema = arrow, arrow.schema([*fields, *self._added])
        batches = () if file is None else file.iter_batches(batch_size=_BATCH)
        self._batches = (batch for batch in batches if batch.num_rows)
        self._batch: Any = next(self._batches, None)  # the source's, of which the rows come now
        self._file: Any = parquet.ParquetWriter(part, self._schema)
        self._held: list[Row] = []

    def write(self, row: Row) -> None:
        self._held.append(row)
        if len(self._held) == (_BATCH if self._batch is None else self._batch.num_rows):
            self._flush()

    def close(self) -> None:
        if self._held:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        own = [] if self._batch is None else self._batch.columns
        texts = [[None if row.get(name) is None else text_of(row[name]) for row in self._held] for name in self._texts]
        arrays = [self._arrow.array(values, self._arrow.string()) for values in texts]
        arrays += [self._arrow.array([row.get(each.name) for row in self._held], each.type) for each in self._added]
        self._file.write_batch(self._arrow.RecordBatch.from_arrays([*own, *arrays], schema=self._schema))
        self._held.clear()
        self._batch = next(self._batches, None)


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
    with _opened(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        names = _header(path, reader)
        for values in _told(reader, lambda: f"line {reader.line_num}"):
            if not values:
                continue  # a blank line
            if len(values) != len(names):
                raise BadRow(f"line {reader.line_num} has {len(values)} fields, and there are {len(names)} columns")
            yield dict(zip(names, values, strict=True))


def _header(path: Path, reader: Any) -> list[str]:  # noqa: ANN401 - the csv module's reader has no public type
    names = next(_told(reader, lambda: "line 1"), None)
    if not names:
        raise Stop(f"{path} has no line with the names of its columns.", RunExit.BAD_DATA)
    twice = [name for at, name in enumerate(names) if name in names[:at]]
    if twice:
        raise Stop(f"{path}: two columns are called {twice[0]!r}.", RunExit.BAD_DATA)
    return list(names)


def _told(rows: Iterator[list[str]], where: Callable[[], str]) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as fault:
        raise BadRow(f"{where()}: {fault}") from fault
    except UnicodeDecodeError as fault:
        raise BadRow(f"from {where()} on, it is not in UTF-8") from fault


def _opened(path: Path) -> TextIO:
    """Open a text; the mark that some programs put before UTF-8 is no part of it."""
    return io.TextIOWrapper(path.open("rb", buffering=_BUFFER), encoding="utf-8-sig", newline="")


def _json_rows(path: Path) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb", buffering=_BUFFER) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield decoder.decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
                raise BadRow(f"line {number} is no JSON object: {fault}") from fault


def _parquet(path: Path) -> Iterator[Row]:
    arrow, _ = _pyarrow()
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=_BATCH):
            names = batch.schema.names
            values = [_in_python(arrow, name, column) for name, column in zip(names, batch.columns, strict=True)]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))
    except arrow.ArrowException as fault:
        raise BadRow(f"its rows cannot be read: {fault}") from fault


def _in_python(arrow: Any, name: str, column: Any) -> list[Any]:  # noqa: ANN401 - pyarrow has no annotations
    """Return a column's values: times to the microsecond, as Python has them; as text where one is more exact."""
    if getattr(column.type, "unit", None) == "ns":
        try:
            column = column.cast(_coarser(arrow, column.type))
        except arrow.ArrowInvalid:
            column = column.cast(arrow.string())
    try:
        return list(column.to_pylist())
    except ValueError as fault:  # such times inside lists
        raise BadRow(f"its column {name!r} cannot be read: {fault}") from fault


def _coarser(arrow: Any, kind: Any) -> Any:  # noqa: ANN401 - the same
    if arrow.types.is_timestamp(kind):
        return arrow.timestamp("us", kind.tz)
    return arrow.time64("us") if arrow.types.is_time(kind) else arrow.duration("us")


def _parquet_file(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no annotations
    arrow, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as fault:
        raise Stop(f"{path} cannot be read as Parquet: {fault}.", RunExit.USAGE) from fault


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as arrow  # noqa: ICN001, PLC0415 - an extra, which CSV and JSONL do not need; no alias of two letters
        from pyarrow import parquet  # noqa: PLC0415 - the same
    except ModuleNotFoundError as missing:
        raise Stop("Parquet needs an extra: pip install 'batchmill[convert]'", RunExit.USAGE) from missing
    return arrow, parquet

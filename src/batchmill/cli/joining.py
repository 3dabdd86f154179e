"""`batchmill convert --back`: results joined to the rows that they came from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from batchmill.cli.convert import require_columns, row_id
from batchmill.cli.exit import RunExit, Stop
from batchmill.cli.index import Index
from batchmill.cli.output import appearing
from batchmill.cli.table import BadRow, columns_of, read_rows, write_rows
from batchmill.client.text import shown

_ADDED: Mapping[str, type] = {
    "answer": str,
    "finish_reason": str,
    "prompt_tokens": int,
    "completion_tokens": int,
    "status": int,
    "error_code": str,
    "error": str,
}
_BEFORE = "result_"  # stands before a name that a column of the input has
_NO_RESULT = {"error_code": "no_result", "error": "no result line has this row's custom_id"}


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Result(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: dict[str, Any] | None = None

    @property
    def has_succeeded(self) -> bool:
        return self.error is None and self.response is not None and self.response.status_code < 400  # noqa: PLR2004 - HTTP's own


_RESULT = msgspec.json.Decoder(_Result)


def join(
    found: Sequence[Path], source: Path, output: Path, *, column: str | None, delimiter: str | None
) -> tuple[int, int]:
    """Write each row of `source` with what came of it; return how many rows there are, and how many have no result.

    Of several results of one row one that succeeded stands, and of equals the later.

    Raises:
        Stop: a file cannot be read or written, or is not what it should be.
    """
    columns = columns_of(source, delimiter=delimiter)
    if column is not None:
        require_columns(source, columns, [column], "--id")
    names = {name: _free(name, columns) for name in _ADDED}
    kinds = {names[name]: kind for name, kind in _ADDED.items()}
    rows = missing = 0
    with ExitStack() as stack:
        index = stack.enter_context(closing(Index()))
        streams = [stack.enter_context(_opened(path)) for path in found]
        for number, (path, stream) in enumerate(zip(found, streams, strict=True)):
            _note_places(path, stream, number, index)
        part = stack.enter_context(appearing(output, reads=[source, *found]))
        with closing(write_rows(output, part, source, columns, kinds, delimiter=delimiter)) as writer:
            try:
                for rows, row in enumerate(read_rows(source, delimiter=delimiter), 1):
                    place = index.find(row_id(row, rows, column))
                    missing += place is None
                    told = _NO_RESULT if place is None else _told(_read(streams[place[0]], place[1]))
                    writer.write({**row, **{names[name]: told.get(name) for name in _ADDED}})
            except BadRow as fault:
                raise Stop(f"{source}: {shown(fault)}.", RunExit.BAD_DATA) from fault
    return rows, missing


def _free(name: str, columns: Sequence[str]) -> str:
    while name in columns:  # those of an earlier join are there, too
        name = f"{_BEFORE}{name}"
    return name


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as fault:
        raise Stop(f"{path} cannot be read: {fault.strerror}.", RunExit.USAGE) from fault


def _note_places(path: Path, stream: BinaryIO, file: int, index: Index) -> None:
    for number, at, line in _places(stream):
        try:
            result = _RESULT.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            raise Stop(f"{path}: line {number} is no line of a result file.", RunExit.BAD_DATA) from fault
        index.put(result.custom_id, file=file, at=at, rank=int(result.has_succeeded))


def _places(stream: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, at, line
        at += len(line)


def _read(stream: BinaryIO, at: int) -> _Result:
    stream.seek(at)
    return _RESULT.decode(stream.readline())


def _told(result: _Result) -> dict[str, Any]:
    """Return what a result says, by the names of the columns."""
    told: dict[str, Any] = {}
    body: Any = None
    if result.response is not None:
        told["status"] = result.response.status_code
        body = msgspec.json.decode(result.response.body)
    body = body if isinstance(body, dict) else {}
    if not result.has_succeeded:
        error = result.error or body.get("error") or body
        error = error if isinstance(error, dict) else {"message": error}
        code = error.get("code") or error.get("type")
        told["error_code"] = None if code is None else _text(code)
        told["error"] = _text(error.get("message", error))
        return told
    told["answer"], told["finish_reason"] = _answer(body)
    usage = body.get("usage")
    for name in ("prompt_tokens", "completion_tokens") if isinstance(usage, dict) else ():
        told[name] = usage[name] if isinstance(usage.get(name), int) else None
    return told


def _answer(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the text of a reply and why it ended: of chat, of a completion, of embeddings; else the body itself."""
    choices, data = body.get("choices"), body.get("data")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        choice = choices[0]
        message = choice.get("message")
        content = choice.get("text") if not isinstance(message, dict) else message.get("content")
        if content is None and isinstance(message, dict):
            content = message.get("tool_calls")
        reason = choice.get("finish_reason")
        return None if content is None else _text(content), None if reason is None else _text(reason)
    if isinstance(data, list) and data and isinstance(data[0], dict) and "embedding" in data[0]:
        return _text(data[0]["embedding"]), None
    return _text(body), None


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

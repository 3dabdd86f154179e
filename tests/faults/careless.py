"""Careless variants of the write path, for the bare process only: each must be caught by the power cuts."""

import os
import stat
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, Float, event, literal

from batchmill.blobs.blobs import Written
from batchmill.blobs.disk import DiskWriter
from batchmill.store.database import SqliteDatabase, Transaction

_later: list[Callable[[], object]] = []  # what a careless process does after it has answered


def _skip_fsync_of(is_kind: Callable[[int], bool]) -> None:
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        if not is_kind(os.fstat(descriptor).st_mode):
            honest(descriptor)

    os.fsync = fsync


def _no_file_fsync() -> None:
    _skip_fsync_of(stat.S_ISREG)


def _no_folder_fsync() -> None:
    _skip_fsync_of(stat.S_ISDIR)


def _normal() -> None:
    """SQLite's popular recipe: a write-ahead log with `synchronous=NORMAL`."""
    honest = SqliteDatabase.__init__

    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's
        connection.execute("PRAGMA synchronous=NORMAL")

    def init(self: SqliteDatabase, **rest: Any) -> None:  # noqa: ANN401 - whatever it takes
        honest(self, **rest)
        for engine in (self._writer, self._reader):
            event.listen(engine, "connect", on_connect)  # after the database's own

    SqliteDatabase.__init__ = init  # type: ignore[method-assign]


def _row_before_bytes() -> None:
    """The row is published first, and its bytes are made durable then."""
    honest, write = DiskWriter.finish, SqliteDatabase.write

    def finish(self: DiskWriter) -> Written:
        _later.append(lambda: honest(self))
        return Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    async def write_first(self: SqliteDatabase, statements: Any, **rest: Any) -> Any:  # noqa: ANN401 - whatever it is
        value = await write(self, statements, **rest)
        after_answer()
        return value

    DiskWriter.finish = finish  # type: ignore[method-assign]
    DiskWriter.discard = lambda _self: None  # type: ignore[method-assign]
    SqliteDatabase.write = write_first  # type: ignore[method-assign]


def _answer_before_commit() -> None:
    """The transaction commits after the answer, or before the next one."""
    honest = SqliteDatabase._transact

    def transact(self: SqliteDatabase, engine: Engine, statements: Callable[[Transaction], Any]) -> Any:  # noqa: ANN401 - the same
        after_answer()
        if engine is self._reader:
            return honest(self, engine, statements)
        begun = engine.begin()
        connection = begun.__enter__()
        _later.append(lambda: begun.__exit__(None, None, None))
        return statements(Transaction(connection=connection, lease_now=literal(self._clock.boot(), Float)))

    SqliteDatabase._transact = transact  # type: ignore[method-assign]


def after_answer() -> None:
    """Do what was put off."""
    while _later:
        _later.pop(0)()


CARELESS: dict[str, Callable[[], None]] = {
    "no-file-fsync": _no_file_fsync,
    "no-folder-fsync": _no_folder_fsync,
    "synchronous-normal": _normal,
    "row-before-bytes": _row_before_bytes,
    "answer-before-commit": _answer_before_commit,
}

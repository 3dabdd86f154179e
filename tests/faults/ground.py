"""The ground of a run: where its rows and bytes are, and how the harness reads them behind the product's back.

This one is a data directory: SQLite and a disk.
"""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

LetGo = Callable[[], None]
Row = tuple[Any, ...]


class Rows(Protocol):
    """A connection of the harness' own to the rows. Not shared between threads."""

    def all(self, sql: str, **values: object) -> list[Row]:
        """Return what a query finds; `:name` in it stands for a value. It waits for rows that are away."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Ground(Protocol):
    """Where rows and bytes are.

    `troubles` is what `begin` can do to them, and for how many seconds it does; `away`: the rows answer nobody now;
    `bites` counts, by trouble, how often one was seen to reach the product.
    """

    name: str
    troubles: Mapping[str, float]
    away: bool
    has_many_writers: bool  # at a time: PostgreSQL
    holds_on: bool  # a hold may last as long as a stop: one database lock for all would let nobody overtake

    @property
    def settings(self) -> dict[str, Any]:
        """What the product is told."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What its processes find in their environment."""
        ...

    @property
    def bites(self) -> Mapping[str, int]:
        """How often each trouble reached the product."""
        ...

    def rows(self) -> Rows:
        """Look at the rows."""
        ...

    def script(self, sql: str) -> None:
        """Run statements."""
        ...

    def prepare(self) -> None:
        """Add what the harness needs, once the tables are there."""
        ...

    def unsound(self) -> list[Row]:
        """Return what the database finds wrong with itself."""
        ...

    def keys(self) -> set[str]:
        """Name all bytes that are there, those that nobody finished, too."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes of a key."""
        ...

    def hold(self, process: str) -> LetGo | None:
        """Let the writes of a process wait until they are let go; None if it cannot be had just now.

        Where the database has one lock for all, everybody waits.
        """
        ...

    def begin(self, trouble: str) -> LetGo:
        """Let something go wrong with rows or bytes; what is returned ends it, and returns once it has ended."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class _File:
    """Rows of a SQLite file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30, isolation_level=None)

    def all(self, sql: str, **values: object) -> list[Row]:
        """See `Rows`."""
        return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """See `Rows`."""
        self._connection.close()


class DataDirectory:
    """SQLite and a disk; nothing goes wrong with them here (crash points and full disks have tests of their own)."""

    name = "sqlite+disk"
    troubles: Mapping[str, float] = MappingProxyType({})
    away = False
    has_many_writers = False
    holds_on = False

    def __init__(self, data: Path) -> None:
        data.mkdir()
        self._data = data
        self._database = data / "batchmill.sqlite3"
        self.environment: Mapping[str, str] = {}
        self.bites: Mapping[str, int] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """See `Ground`."""
        return {"data": str(self._data)}

    def rows(self) -> Rows:
        """See `Ground`."""
        return _File(self._database)

    def script(self, sql: str) -> None:
        """See `Ground`."""
        with closing(sqlite3.connect(self._database, timeout=30)) as connection:
            connection.executescript(sql)

    def prepare(self) -> None:
        """See `Ground`."""

    def unsound(self) -> list[Row]:
        """See `Ground`."""
        with closing(self.rows()) as rows:
            wrong = [row for row in rows.all("PRAGMA integrity_check") if row != ("ok",)]
            return wrong + rows.all("PRAGMA foreign_key_check")

    def keys(self) -> set[str]:
        """See `Ground`."""
        return {path.name for path in (self._data / "blobs").glob("*/*")}

    def read(self, key: str) -> bytes:
        """See `Ground`."""
        (path,) = (self._data / "blobs").glob(f"*/{key}")
        return path.read_bytes()

    def hold(self, process: str) -> LetGo | None:  # noqa: ARG002 - one lock for all
        """See `Ground`."""
        lock = sqlite3.connect(self._database, timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # a stopped worker has it, perhaps, and only we let that go on
            lock.close()
            return None

        def let_go() -> None:
            lock.execute("ROLLBACK")
            lock.close()

        return let_go

    def begin(self, trouble: str) -> LetGo:
        """See `Ground`."""
        raise ValueError(f"{trouble}: nothing goes wrong with a data directory here")

    def close(self) -> None:
        """See `Ground`."""

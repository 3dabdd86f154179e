"""Places by name, more than fit into memory: a table in a file without a name, which is gone when it is closed."""

import sqlite3
from contextlib import closing

_HELD = 10_000  # rows of one insert
_SET_UP = "CREATE TABLE place (name TEXT PRIMARY KEY, file INTEGER, at INTEGER, rank INTEGER) WITHOUT ROWID"
_PUT = """INSERT INTO place VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE
 SET file = excluded.file, at = excluded.at, rank = excluded.rank WHERE excluded.rank >= rank"""


class Index:
    """Where each name's thing is: the number of a file, and a place in it."""

    def __init__(self) -> None:
        """Make an empty one, in a temporary file that SQLite removes by itself."""
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(_SET_UP)
        self._held: list[tuple[str, int, int, int]] = []

    def put(self, name: str, *, file: int, at: int, rank: int = 0) -> None:
        """Note a place; of two of one name the higher rank stays, and of equals the later."""
        self._held.append((name, file, at, rank))
        if len(self._held) >= _HELD:
            self._flush()

    def add(self, name: str, at: int) -> int | None:
        """Note a name's first place; return that which it has already, if any."""
        if self._rows.execute("INSERT OR IGNORE INTO place VALUES (?, 0, ?, 0)", (name, at)).rowcount:
            return None
        return int(self._rows.execute("SELECT at FROM place WHERE name = ?", (name,)).fetchone()[0])

    def find(self, name: str) -> tuple[int, int] | None:
        """Return the file and the place of a name."""
        if self._held:
            self._flush()
        found = self._rows.execute("SELECT file, at FROM place WHERE name = ?", (name,)).fetchone()
        return None if found is None else (int(found[0]), int(found[1]))

    def close(self) -> None:
        """Remove it."""
        with closing(self._rows):
            pass

    def _flush(self) -> None:
        self._rows.execute("BEGIN")
        self._rows.executemany(_PUT, self._held)
        self._rows.execute("COMMIT")
        self._held.clear()

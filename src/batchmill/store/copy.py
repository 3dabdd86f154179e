"""One consistent copy of the rows of a running SQLite database, and what makes such a copy nobody's."""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from batchmill.store.batch import pass_over, unstick
from batchmill.store.blob import doom_stale
from batchmill.store.database import Transaction
from batchmill.store.tables import blob
from batchmill.store.worker import void_leases

_ALWAYS = 1 << 62  # Unix seconds: later than any row


def copy_rows(tx: Transaction, *, path: Path) -> Mapping[str, int]:
    """Copy all rows of this snapshot to a new file, durably; return its ready blobs, with their bytes.

    By SQLite's online backup, in one step: the writer is not held up, since a reader of the write-ahead log never
    does that. In several steps each write of the server would begin it anew, and `VACUUM INTO` builds every index
    again, with the server's own processor.
    """
    ready = select(blob.c.key, blob.c.bytes).where(blob.c.state == "ready")
    needed = {row.key: row.bytes for row in tx.connection.execute(ready)}  # first: the backup joins this snapshot
    source = tx.connection.connection.driver_connection
    if not isinstance(source, sqlite3.Connection):
        raise TypeError("only SQLite's rows are copied like this")
    with closing(sqlite3.connect(path)) as target:
        source.backup(target)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return needed


def settle_copy(tx: Transaction) -> None:
    """Let nobody hold anything of a copy, and nothing wait: its workers run elsewhere, on another boot's clock.

    What was being written or going has no bytes in it; the Sweeper forgets such rows.
    """
    void_leases(tx, worker_id="")
    unstick(tx)
    pass_over(tx)
    doom_stale(tx, created_before=_ALWAYS)

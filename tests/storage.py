"""Where one suite runs, reported by name: on SQLite with a disk, and on PostgreSQL with a bucket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.clock import Clock
from batchmill.store.database import Database, SqliteDatabase
from batchmill.store.postgres import PostgresDatabase
from bucket import bucket_of
from postgres import cluster_of, migrated_file

STORAGES = ("sqlite+disk", "postgresql+s3")
# Tests that mean nothing elsewhere, by what they ask for.
on_disk = pytest.mark.parametrize("mill", ["sqlite+disk"], indirect=True)
on_one_machine = pytest.mark.parametrize("processes", ["sqlite+disk"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Rows and bytes, both empty."""

    database: Database
    blobs: Blobs


@asynccontextmanager
async def storage_of(name: str, config: pytest.Config, folder: Path, clock: Clock) -> AsyncIterator[Storage]:
    """Give a test the storage of this name; leases are judged by its clock."""
    if name == "sqlite+disk":
        path = folder / "rows.sqlite3"
        path.write_bytes(await migrated_file(config, folder))
        sqlite = SqliteDatabase(path=path, clock=clock)
        yield Storage(database=sqlite, blobs=DiskBlobs(folder=folder / "blobs"))
        await sqlite.close()
        return
    cluster = cluster_of(config)
    url = await cluster.new_database()
    postgres = PostgresDatabase(url=url, lease_clock=clock, patience=60.0)  # of a busy machine
    yield Storage(database=postgres, blobs=bucket_of(config).blobs(folder))
    await postgres.close()
    await cluster.give_back(url)

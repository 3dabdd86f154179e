"""Which rows and bytes the settings give."""

from pathlib import Path

import pytest

from batchmill.assemble.storage import Storage, build_clock
from batchmill.blobs.bucket import BucketBlobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.settings import BadSettings, load_settings
from batchmill.store.database import SqliteDatabase
from batchmill.store.postgres import PostgresDatabase

_DATABASE = "postgresql://me:secret@127.0.0.1:1/rows"


async def test_a_data_directory_is_sqlite_and_a_disk(tmp_path: Path) -> None:
    """With nothing said, rows and bytes are under the data directory."""
    storage = Storage(settings=load_settings({"data": tmp_path}), clock=build_clock())
    assert isinstance(storage.database, SqliteDatabase)
    assert isinstance(storage.blobs, DiskBlobs)
    assert storage.disk is storage.blobs
    await storage.database.close()


async def test_a_server_and_a_bucket_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL and a bucket take their places; there are no files then to be linked."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    settings = load_settings({"data": tmp_path, "database": _DATABASE, "blobs": "s3://bucket/prefix"})
    storage = Storage(settings=settings, clock=build_clock())
    assert isinstance(storage.database, PostgresDatabase)
    assert isinstance(storage.blobs, BucketBlobs)
    with pytest.raises(LookupError):
        _ = storage.disk
    await storage.database.close()


@pytest.mark.parametrize("query", ["sslmode=sometimes", "nonsense=1"])
def test_a_url_that_makes_no_sense_is_a_bad_setting(tmp_path: Path, query: str) -> None:
    """It is told as a setting, without the password."""
    settings = load_settings({"data": tmp_path, "database": f"{_DATABASE}?{query}"})
    with pytest.raises(BadSettings, match=r"^database: ") as caught:
        Storage(settings=settings, clock=build_clock())
    assert "secret" not in str(caught.value)

import errno
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from api.served import LINE, Answer, Served, Tenant, file_part, text_part
from batchmill.api.fault import as_api_error
from batchmill.api.reserve import write_on_reserve
from batchmill.blobs.blobs import Written
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.space import Boundless, Space
from batchmill.spec.ids import mint_key
from batchmill.store.database import DatabaseAway, DiskFull, SqliteDatabase
from engine.faulty import FaultyDatabase
from fakeclock import FakeClock
from volume import fill, small_volume

BATCH = text_part("purpose", "batch")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/file", "/v1/files/", "//v1/files", "/v1/batches/a/b", "/v1/files/a/content/", "/metrics"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_a_404_in_the_envelope(tenant: Tenant, method: str, path: str) -> None:
    """A path that is nobody's is a 404, never a redirect."""
    assert tenant.call(method, path).error == (404, "resource_not_found_error", None, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/files", "GET, POST"),
        ("DELETE", "/v1/files", "GET, POST"),
        ("PATCH", "/v1/files/x", "DELETE, GET"),
        ("POST", "/v1/files/x/content", "GET, HEAD"),
        ("PUT", "/v1/batches", "GET, POST"),
        ("DELETE", "/v1/batches/x", "GET"),
        ("GET", "/v1/batches/x/cancel", "POST"),
        ("POST", "/v1/models", "GET"),
        ("OPTIONS", "/v1/batches", "GET, POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(
    tenant: Tenant, method: str, path: str, allowed: str
) -> None:
    """`Allow` lists every method of the path, whichever route comes first."""
    answer = tenant.call(method, path)
    assert answer.error == (405, "invalid_request_error", None, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_head_is_no_get(tenant: Tenant) -> None:
    """HEAD is a 405 without a body everywhere but on a download."""
    assert tenant.call("HEAD", "/v1/files").status == 405


def test_a_fault_of_ours_is_a_500_in_the_envelope(tenant: Tenant, logged: list[MutableMapping[str, Any]]) -> None:
    """When a file's bytes are gone, the answer says only that it is our fault; its id leads to the log entry."""
    made = tenant.upload()
    [key] = tenant.blobs()
    tenant.served.blobs.delete(key)
    answer = tenant.call("GET", f"/v1/files/{made['id']}/content")
    assert answer.error == (500, "server_error", None, "internal_error")
    assert key not in answer.body.decode()
    [entry] = logged
    assert (entry["event"], entry["exc_info"]) == ("request failed", True)
    assert entry["request_id"] == answer.headers["x-request-id"]


def test_an_outage_is_a_line_in_the_log(
    tenant: Tenant, logged: list[MutableMapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request says it again for as long as it lasts: in one line, where a trace has two hundred."""

    async def away(_statements: object) -> None:
        raise DatabaseAway("connection refused (tried for 5 s)")

    monkeypatch.setattr(tenant.served.database, "read", away)
    assert tenant.call("GET", "/v1/files").status == 503
    [entry] = logged
    assert (entry["log_level"], entry["reason"]) == ("warning", "connection refused (tried for 5 s)")
    assert "exc_info" not in entry


def test_a_database_that_is_away_is_a_503(serve: Callable[..., Served]) -> None:
    """Without its tables the API asks for a later retry, on every route."""
    served = serve(migrated=False)
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/models")):
        answer = served.call(method, path, Authorization=f"Bearer {mint_key()}")
        assert answer.error == (503, "server_unavailable", None, "unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert served.call("GET", "/healthz").status == 200


class FullDisk(DiskBlobs):
    """Blobs whose bytes go to the device that is always full."""

    def writer(self, key: str) -> "FullWriter":
        """See `Blobs`."""
        assert key
        return FullWriter(Path("/dev/full").open("wb", buffering=0))


class FullWriter:
    """Bytes on their way to /dev/full."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._stream.write(data)

    def finish(self) -> Written:
        """See `BlobWriter`."""
        raise AssertionError("nothing was written")

    def discard(self) -> None:
        """See `BlobWriter`."""
        self._stream.close()


def check_full(answer: Answer) -> None:
    """Assert that an upload was a 507 that no client sends again at once."""
    assert answer.error == (507, "insufficient_storage", None, "insufficient_storage")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_disk_is_a_507(serve: Callable[..., Served], tmp_path: Path) -> None:
    """An upload that the kernel has no space for is refused; there is no File, and its row is doomed."""
    tenant = serve(blobs=FullDisk(folder=tmp_path / "full")).tenant()
    check_full(tenant.send_form(BATCH, file_part(LINE)))
    assert tenant.call("GET", "/v1/files").json["data"] == []
    assert list(tenant.blobs().values()) == [("doomed", 0)]


def test_a_full_database_is_a_507(serve: Callable[..., Served]) -> None:
    """The same where the database may not grow any more: files are taken until its pages are full."""
    served = serve()
    tenant = served.tenant()
    served.rows(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count = 1"))  # no more than there are
    taken = 0
    while (answer := tenant.send_form(BATCH, file_part(LINE))).status == 200:
        taken += 1
    check_full(answer)
    assert len(tenant.call("GET", "/v1/files").json["data"]) == taken
    ready = {key for key, (state, _) in tenant.blobs().items() if state == "ready"}
    assert len(ready) == taken
    assert ready <= tenant.bytes_on_disk()  # and what could not be published is the Sweeper's


def test_an_upload_below_the_floor_is_a_507(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Where the disk is nearly full an upload is refused before a byte of it is read; listing and deleting go on."""
    with small_volume(tmp_path / "volume", mib=40) as folder:
        room = Space(folder=folder)
        tenant = serve(room=room).tenant()
        made = tenant.upload()
        ballast = fill(folder, leave=1 << 20)
        check_full(tenant.send_form(BATCH, file_part(LINE)))
        assert set(tenant.blobs().values()) == {("ready", 1)}
        assert tenant.call("DELETE", f"/v1/files/{made['id']}").status == 200
        ballast.unlink()
        assert tenant.send_form(BATCH, file_part(LINE)).status == 200


def test_a_read_only_disk_is_a_507() -> None:
    """A volume that has become read-only is no fault of ours either."""
    assert as_api_error(OSError(errno.EROFS, "Read-only file system")).status == 507
    assert as_api_error(OSError(errno.EIO, "Input/output error")).status == 500


class FailedDisk(DiskBlobs):
    """Blobs whose bytes never become durable: the disk fails."""

    def writer(self, key: str) -> "FailedWriter":
        """See `Blobs`."""
        assert key
        return FailedWriter(Path(os.devnull).open("wb", buffering=0))


class FailedWriter(FullWriter):
    """Bytes whose fsync is an I/O error."""

    def finish(self) -> Written:
        """See `BlobWriter`."""
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failed_disk_ends_the_process(serve: Callable[..., Served], tmp_path: Path) -> None:
    """An I/O error is a 500, nothing of the upload is left, and whoever runs the API is told to end it."""
    served = serve(blobs=FailedDisk(folder=tmp_path / "failed"))
    tenant = served.tenant()
    assert not served.broken.is_set()
    assert tenant.send_form(BATCH, file_part(LINE)).error == (500, "server_error", None, "internal_error")
    assert list(tenant.blobs().values()) == [("doomed", 0)]
    assert served.broken.is_set()


def test_a_full_disk_does_not_end_the_process(serve: Callable[..., Served], tmp_path: Path) -> None:
    """No space is no failure of the disk: the API goes on."""
    served = serve(blobs=FullDisk(folder=tmp_path / "full"))
    check_full(served.tenant().send_form(BATCH, file_part(LINE)))
    assert not served.broken.is_set()


class Reserve(Boundless):
    """Room that makes space in a database when its reserve is given."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def give(self) -> None:
        """See `Room`."""
        self._database.full = False


async def test_cancels_and_deletes_take_the_reserve(tmp_path: Path) -> None:
    """A row that finds no space drops the reserve and is written; any other fault is raised as it is."""
    database = FaultyDatabase(SqliteDatabase(path=tmp_path / "rows.sqlite3", clock=FakeClock()))
    database.full = True
    with pytest.raises(DiskFull):
        await write_on_reserve(database, Boundless(), lambda _tx: "written")
    assert await write_on_reserve(database, Reserve(database), lambda _tx: "written") == "written"
    await database.close()

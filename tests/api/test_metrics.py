"""`/metrics`: what Prometheus reads of a worker, over real HTTP."""

import asyncio
import http.client
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from batchmill.api.metrics import MetricsApp
from batchmill.spec.states import Status
from batchmill.store.database import SqliteDatabase
from batchmill.store.migrate import migrate
from batchmill.store.model import BackendState, save_backend
from batchmill.telemetry import Metrics
from fakeclock import FakeClock
from store.rows import PATHS, a_batch, add_batch, add_organisations, add_running

Numbers = dict[tuple[str, tuple[str, ...]], float]


class Scraped:
    """`/metrics` of one process, on a real server."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.sqlite3"
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.database = SqliteDatabase(path=self.path, clock=self.clock)
        app = MetricsApp(metrics=self.metrics, database=self.database, clock=self.clock)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, interface="asgi3", lifespan="off", log_config=None))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def end(self) -> None:
        """Stop the server."""
        self._server.should_exit = True
        await self._serving
        await self.database.close()

    async def ask(self, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
        """Return status, content type and text."""
        return await asyncio.to_thread(self._ask, path, method)

    async def numbers(self) -> Numbers:
        """Return every sample by its name and the values of its labels."""
        status, kind, text = await self.ask()
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}

    def _ask(self, path: str, method: str) -> tuple[int, str, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path)
            got = connection.getresponse()
            return got.status, got.headers["Content-Type"], got.read().decode()


@pytest.fixture
async def scraped(tmp_path: Path) -> AsyncIterator[Scraped]:
    """`/metrics` over an empty database."""
    made = Scraped(tmp_path)
    await made.database.write(migrate)
    await made.database.write(add_organisations)
    yield made
    await made.end()


async def test_the_numbers_of_the_process_are_told(scraped: Scraped) -> None:
    """What the process has counted is told under the names of `Metrics`."""
    scraped.metrics.sends.labels(backend="http://gpu-1/v1").inc(3)
    scraped.metrics.lines.labels(outcome="completed").inc(2)
    numbers = await scraped.numbers()
    assert numbers["batchmill_sends_total", ("http://gpu-1/v1",)] == 3
    assert numbers["batchmill_lines_total", ("completed",)] == 2
    assert numbers["batchmill_commit_seconds_count", ()] == 0


async def test_batches_are_counted_by_status(scraped: Scraped) -> None:
    """Every one of the eight states has its number of batches, none at all included."""
    states = [status for status in PATHS if status is not Status.EXPIRED]
    for n, status in enumerate(states):
        await scraped.database.write(lambda tx, n=n, s=status: add_batch(tx, a_batch(f"batch_{n}"), status=s))
    numbers = await scraped.numbers()
    told = {labels[0]: value for (name, labels), value in numbers.items() if name == "batchmill_batches"}
    assert told == {status.value: float(status in states) for status in Status}


async def test_the_backlog_is_the_lines_without_a_result(scraped: Scraped) -> None:
    """Lines of running batches that have no Result are the backlog; those of closing batches are not."""
    await scraped.database.write(lambda tx: add_running(tx, slices=2, lines=8))
    assert (await scraped.numbers())["batchmill_lines_open", ()] == 16
    change(scraped.path, "UPDATE batch SET completed = 3, failed = 2")
    assert (await scraped.numbers())["batchmill_lines_open", ()] == 11
    change(scraped.path, "UPDATE batch SET status = 'cancelling'")
    assert (await scraped.numbers())["batchmill_lines_open", ()] == 0


async def test_a_batch_is_stuck_after_five_crashes_until_it_is_final(scraped: Scraped) -> None:
    """A batch whose finalizing failed five times in a row is stuck; four times, or a final batch, is not."""
    await scraped.database.write(lambda tx: add_running(tx, slices=1))
    stuck = [(await crashed(scraped, crashes))["batchmill_batches_stuck", ()] for crashes in (4, 5, 6)]
    assert stuck == [0, 1, 1]
    change(scraped.path, "UPDATE batch SET status = 'completed'")
    assert (await scraped.numbers())["batchmill_batches_stuck", ()] == 0


async def test_it_is_told_how_long_a_backend_is_unwell(scraped: Scraped) -> None:
    """An unwell backend has the seconds since it fell ill, a well one none."""
    since = int(scraped.clock.now()) - 90
    for name, well in (("http://a", True), ("http://b", False)):
        state = BackendState(name=name, well=well, reason=None if well else "refused", since=since)
        await scraped.database.write(lambda tx, state=state: save_backend(tx, state))
    numbers = await scraped.numbers()
    assert numbers["batchmill_backend_unwell_seconds", ("http://a",)] == 0
    assert numbers["batchmill_backend_unwell_seconds", ("http://b",)] == pytest.approx(90, abs=1)


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/v1/batches"), ("POST", "/metrics")])
async def test_nothing_else_is_served(scraped: Scraped, method: str, path: str) -> None:
    """Any other path or method is a 404 with a plain sentence."""
    assert await scraped.ask(path, method) == (
        404,
        "text/plain; charset=utf-8",
        "Only GET /metrics and /healthz are served here.\n",
    )


async def test_it_needs_no_writer(scraped: Scraped) -> None:
    """While another process holds the database's one writing transaction, the numbers are told all the same."""
    with writing(scraped.path):
        assert (await scraped.numbers())["batchmill_lines_open", ()] == 0


async def test_a_database_that_is_away_is_a_503(scraped: Scraped) -> None:
    """Without its tables the answer is one plain sentence with 503, and the next scrape is tried anew."""
    change(scraped.path, "ALTER TABLE backend RENAME TO gone")
    assert await scraped.ask() == (503, "text/plain; charset=utf-8", "The database does not answer.\n")
    change(scraped.path, "ALTER TABLE gone RENAME TO backend")
    assert (await scraped.ask())[0] == 200


async def crashed(scraped: Scraped, crashes: int) -> Numbers:
    """Let a batch have crashed so often, and scrape."""
    change(scraped.path, f"UPDATE batch SET crashes = {crashes}")  # noqa: S608 - a number of ours
    return await scraped.numbers()


def change(path: Path, sql: str) -> None:
    """Change rows by hand."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the writing transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")

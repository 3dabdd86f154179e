"""The ground past one machine: a real PostgreSQL behind a proxy that loses COMMITs, a bucket behind one that fails.

What goes wrong, as the product sees it: `stop fast` and `stop at once` (a crash) cut connections, and refuse them then;
`cut connections` ends single ones in the middle of whatever they do; in a `pause` connections stand, new ones are
taken, and nobody answers; `lost commits` are done, and their answer is lost with the connection. The bucket answers
`500` or resets (`reset`) whatever it is asked for, for longer than one call is patient; it tells to `slow down`; with a
`lost reply` it does what it was asked for, and nobody hears of it.
"""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg
import boto3

from bucket import ENVIRONMENT, Bucket
from faults.ground import LetGo, Row, Rows
from faults.weather import LOST_COMMITS, TOXIC, WeatherProcess
from postgres import Cluster

T = TypeVar("T")

_PATIENCE = 30.0  # seconds until rows that are away must be there again, for the harness
_CUT_SECONDS = 0.2  # between two cut connections
_PASSING = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)
DATABASE_TROUBLES: Mapping[str, float] = {  # and how many seconds each lasts
    "stop fast": 2.0,
    "stop at once": 1.0,
    "cut connections": 4.0,
    "pause": 20.0,
    LOST_COMMITS: 4.0,
}
BUCKET_TROUBLES: Mapping[str, float] = {"500": 7.0, "slow down": 3.0, "reset": 7.0, "lost reply": 4.0}
# The writes of one process wait here, before they have locked a row: so another may overtake them (`Ground.hold`).
_GATE = """
CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_advisory_lock_shared(hashtext(current_setting('application_name')));
  PERFORM pg_advisory_unlock_shared(hashtext(current_setting('application_name')));
  RETURN NULL;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON slice FOR EACH STATEMENT EXECUTE FUNCTION gate();
CREATE TRIGGER gate BEFORE UPDATE ON batch FOR EACH STATEMENT EXECUTE FUNCTION gate();
"""


class _Aside:
    """An event loop in a thread of its own: the proxy before the database, and the harness' own connections."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run to the end there, and wait for it here."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def soon(self, call: Callable[[], None]) -> None:
        """Let it be called there."""
        self._loop.call_soon_threadsafe(call)

    def begin(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run there, and do not wait."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class _Connection:
    """Rows of a PostgreSQL server; a connection that was cut is made anew."""

    def __init__(self, aside: _Aside, url: str) -> None:
        self._aside = aside
        self._url = url
        self._connection: asyncpg.Connection | None = None

    def all(self, sql: str, **values: object) -> list[Row]:
        """See `Rows`."""
        names = list(values)
        query = re.sub(r"(?<!:):(\w+)", lambda name: f"${names.index(name[1]) + 1}", sql)
        return self._aside.run(self._all(query, list(values.values())))

    def close(self) -> None:
        """See `Rows`."""
        if self._connection is not None:
            self._aside.run(self._connection.close())

    async def _all(self, query: str, values: list[object]) -> list[Row]:
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    if self._connection is None:
                        self._connection = await asyncpg.connect(self._url, timeout=_PATIENCE)
                    return [tuple(row) for row in await self._connection.fetch(query, *values)]
                except _PASSING:
                    if self._connection is not None:
                        self._connection.terminate()
                    self._connection = None
                    await asyncio.sleep(0.05)


class Remote:
    """PostgreSQL and a bucket, each on its own port of 127.0.0.1. Made and closed by the process's first thread."""

    name = "postgresql+s3"
    troubles: Mapping[str, float] = MappingProxyType({**DATABASE_TROUBLES, **BUCKET_TROUBLES})
    has_many_writers = True
    holds_on = True

    def __init__(self, data: Path) -> None:
        data.mkdir()
        self._data = data
        self.away = False
        self._cuts = 0
        self._halts: Counter[str] = Counter()
        with ExitStack() as stack:
            self._aside = _Aside()
            stack.callback(self._aside.close)
            self._cluster = Cluster()
            stack.callback(self._cluster.stop)
            self._url = self._aside.run(self._cluster.new_database(migrated=False))
            self._bucket = Bucket()
            stack.callback(self._bucket.stop)
            self._place = self._bucket.new_url()
            place = urlsplit(self._place)
            self._name, self._prefix = place.netloc, place.path.lstrip("/") + "/"
            self._s3 = boto3.client("s3", endpoint_url=self._bucket.endpoint)  # not the product's library
            # Spawned: there are threads in this process.
            elsewhere = stack.enter_context(WeatherProcess(ctx=get_context("spawn")))
            self._weather = elsewhere.Weather(database=self._cluster.port, bucket=self._bucket.port)  # type: ignore[attr-defined]
            self._started = stack.pop_all()

    @property
    def settings(self) -> dict[str, Any]:
        """See `Ground`."""
        database = self._url.replace(f":{self._cluster.port}/", f":{self._weather.ports()[0]}/")
        return {"data": str(self._data), "database": database, "blobs": self._place}

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Ground`."""
        return {**ENVIRONMENT, "AWS_ENDPOINT": f"http://127.0.0.1:{self._weather.ports()[1]}"}

    @property
    def bites(self) -> Mapping[str, int]:
        """See `Ground`."""
        return {**self._halts, "cut connections": self._cuts, **self._weather.bites()}

    def rows(self) -> Rows:
        """See `Ground`."""
        return _Connection(self._aside, self._url)

    def script(self, sql: str) -> None:
        """See `Ground`."""
        self._aside.run(self._execute(sql))

    def prepare(self) -> None:
        """See `Ground`."""
        self.script(_GATE)

    def unsound(self) -> list[Row]:
        """See `Ground`: every index of ours is looked through."""
        self.script("CREATE EXTENSION IF NOT EXISTS amcheck")
        rows = self.rows()
        indices = "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        ours = rows.all(f"{indices} WHERE c.relnamespace = 'public'::regnamespace")
        wrong: list[Row] = []
        for (index,) in ours:
            try:
                rows.all(f"SELECT bt_index_check('{index}', true)")
            except asyncpg.PostgresError as fault:
                wrong.append((index, str(fault)))
        rows.close()
        return wrong

    def keys(self) -> set[str]:
        """See `Ground`: objects, and uploads in parts that nobody ended."""
        found: set[str] = set()
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix):
            found |= {each["Key"].removeprefix(self._prefix) for each in page.get("Contents", ())}
        for page in self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._name):
            found |= {f"parts of {each['Key']}" for each in page.get("Uploads", ())}
        return found

    def read(self, key: str) -> bytes:
        """See `Ground`."""
        return bytes(self._s3.get_object(Bucket=self._name, Key=self._prefix + key)["Body"].read())

    def hold(self, process: str) -> LetGo | None:
        """See `Ground`."""
        return self._aside.run(self._hold(f"batchmill {process}"))

    def begin(self, trouble: str) -> LetGo:
        """See `Ground`."""
        if trouble in TOXIC or trouble == LOST_COMMITS:
            self._weather.begin(trouble)
            return cast("LetGo", self._weather.end)
        begin: Mapping[str, Callable[[], LetGo]] = {
            "stop fast": lambda: self._halt(trouble),
            "stop at once": lambda: self._halt(trouble),
            "cut connections": self._cut,
            "pause": self._pause,
        }
        return begin[trouble]()

    def close(self) -> None:
        """See `Ground`."""
        self._started.close()

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _hold(self, application: str) -> LetGo | None:
        connection = await asyncpg.connect(self._url)
        if not await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", application):
            await connection.close()
            return None
        return lambda: self._aside.soon(connection.terminate)  # its session ends, and its locks with it

    def _halt(self, trouble: str) -> LetGo:
        self.away = True
        self._cluster.halt(immediate=trouble == "stop at once")
        self._halts[trouble] += 1

        def start() -> None:
            self._cluster.start()
            self.away = False

        return start

    def _pause(self) -> LetGo:
        self.away = True
        paused = ExitStack()
        paused.enter_context(self._cluster.paused())
        self._halts["pause"] += 1

        def go_on() -> None:
            paused.close()
            self.away = False

        return go_on

    def _cut(self) -> LetGo:
        cutting = self._aside.begin(self._keep_cutting())
        return lambda: cutting.cancel() and None

    async def _keep_cutting(self) -> None:
        """End one connection of the product after the other."""
        one = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'batchmill%'"
            " AND backend_type = 'client backend' ORDER BY state = 'idle', random() LIMIT 1"
        )
        connection = await asyncpg.connect(self._url)
        try:
            while True:
                self._cuts += bool(await connection.fetchval(one))
                await asyncio.sleep(_CUT_SECONDS)
        finally:
            connection.terminate()

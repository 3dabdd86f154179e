"""The real API on a real server, on SQLite and a disk or on PostgreSQL and a bucket; and how a test talks to it."""

import asyncio
import http.client
import itertools
import json
import math
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from openai import AsyncOpenAI, OpenAI
from sqlalchemy import select

from batchmill.api.app import Page, create_app
from batchmill.backends.router import Router
from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.space import Boundless, Room
from batchmill.cli.process import server_config
from batchmill.engine.sweeper import Sweeper
from batchmill.spec.ids import key_digest, mint_id, mint_key
from batchmill.spec.limits import KIMI, Limits
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.organisation import Allowance, insert_key, insert_organisation, save_allowance
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.tables import blob
from fakeclock import FakeClock

T = TypeVar("T")

LINE = (
    b'{"custom_id":"row-1","method":"POST","url":"/v1/chat/completions",'
    b'"body":{"model":"echo","messages":[{"role":"user","content":"\xe9\x9b\xa8"}]}}\n'
)
_BOUNDARY = "boundary-of-the-tests"
_names = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server answered; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the server sent
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None, str | None]:
        """Status, type, param and code of an error."""
        facts = self.json["error"]
        return self.status, facts["type"], facts["param"], facts["code"]

    def without_ids(self) -> tuple[int, dict[str, str], bytes]:
        """Everything but what differs from answer to answer."""
        varying = {"x-request-id", "msh-request-id", "date", "connection"}  # the last is the request's body's doing
        return self.status, {k: v for k, v in self.headers.items() if k not in varying}, self.body


class Served:
    """A running API, on the PostgreSQL of this URL if there is one; `rows` runs statements on its database."""

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits = KIMI,
        blobs: Blobs | None = None,
        room: Room | None = None,
        migrated: bool = True,
        retention: int | None = None,
        catalogue: Catalogue = NOTHING_CONFIGURED,
        trusted_proxies: Sequence[str] = (),
        redirect: bool = False,
        apart: bool = False,
        access_log: bool = False,
        postgres: str | None = None,
        clock: FakeClock | None = None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.broken = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.database: Database = SqliteDatabase(path=folder / "batchmill.sqlite3", clock=self.clock)
        if postgres is not None:
            self.run(self.database.close())
            self.database = PostgresDatabase(url=postgres, lease_clock=self.clock, patience=60.0)
        self.folder = folder / "blobs"
        self.blobs = blobs or DiskBlobs(folder=self.folder)
        if migrated:
            self.rows(migrate)
        app = create_app(
            database=self.database,
            blobs=self.blobs,
            room=room or Boundless(),
            clock=self.clock,
            limits=limits,
            version="0.0.1",
            broken=self.broken.set,
            retention=retention,
            redirect=redirect,
            apart=apart,
            access_log=access_log,
            catalogue=catalogue,
            stopping=lambda: self._server.should_exit,
            pages=pages or {},
        )
        self._server = uvicorn.Server(server_config(app, limits=limits, trusted_proxies=trusted_proxies))
        # A number tells asyncio that it is TCP, as in `serve`; else each answer may be held back for 40 ms (Nagle).
        self._listening = socket.socket(fileno=socket.create_server(("127.0.0.1", 0)).detach())
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(sockets=[self._listening]), self._loop)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop, to which connections to a database belong, and return its result."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def sweep(self) -> None:
        """Let the Sweeper do all that there is to do, as the worker would."""
        sweeper = Sweeper(
            database=self.database, blobs=self.blobs, room=Boundless(), router=Router([]), clock=self.clock
        )
        while self.run(sweeper.step()):
            pass

    def stop(self) -> None:
        """Begin to stop the server, as a signal would."""
        self._server.should_exit = True

    def close(self) -> None:
        """Stop the server and wait for its end; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._server.should_exit = True
        self._serving.result()
        self.run(self.database.close())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def rows(self, statements: Callable[[Transaction], T]) -> T:
        """Run statements in a transaction."""
        return self.run(self.database.write(statements))

    def tenant(self, **allowance: Any) -> "Tenant":  # noqa: ANN401 - the fields of Allowance
        """Make an organisation, which may use so much, with a key."""
        organisation_id = mint_id("org", self.clock.now())

        def statements(tx: Transaction) -> None:
            insert_organisation(tx, organisation_id=organisation_id, name=f"org {next(_names)}", now=1)
            save_allowance(tx, organisation_id=organisation_id, allowance=Allowance(**allowance))

        self.rows(statements)
        return Tenant(served=self, id=organisation_id, key=self.key(organisation_id))

    def key(self, organisation_id: str, **facts: Any) -> str:  # noqa: ANN401 - the facts of insert_key
        """Make a key for an organisation."""
        key, key_id = mint_key(), mint_id("key", self.clock.now())
        made = {"key_id": key_id, "organisation_id": organisation_id, "digest": key_digest(key), "now": 1}
        self.rows(lambda tx: insert_key(tx, **made | facts))
        return key

    def call(self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str) -> Answer:
        """Ask, and wait until the server has nothing left to do: what it logs after its answer belongs to this test."""
        try:
            return self.ask(method, path, body, **headers)
        finally:
            self.idle()

    def ask(self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str) -> Answer:
        """Send a request and check what holds for every answer: its two ids, and the envelope of an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            got = connection.getresponse()
            answer = Answer(status=got.status, headers={k.lower(): v for k, v in got.getheaders()}, body=got.read())
        finally:
            connection.close()
        check(answer, envelope=method != "HEAD" and path != "/readyz")
        return answer

    def idle(self) -> None:
        """Wait until every request that the server has begun is over."""

        async def over() -> None:
            while tasks := set(self._server.server_state.tasks):
                await asyncio.wait(tasks)

        self.run(over())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organisation of a running API, and its key."""

    served: Served
    id: str
    key: str

    def call(self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str) -> Answer:
        """Send a request with the key."""
        return self.served.call(method, path, body, **({"Authorization": f"Bearer {self.key}"} | headers))

    def send_form(self, *parts: bytes, chunked: bool = False) -> Answer:
        """Upload a form made of these parts."""
        content_type, body = form(*parts)
        return self.call("POST", "/v1/files", pieces(body) if chunked else body, Content_Type=content_type)

    def send_json(self, value: object) -> Answer:
        """Create a batch from this JSON value."""
        return self.call("POST", "/v1/batches", json.dumps(value).encode(), Content_Type="application/json")

    def upload(self, content: bytes = LINE, filename: str = "input.jsonl") -> dict[str, Any]:
        """Upload a file, a second after whatever was before."""
        self.served.clock.time += 1
        answer = self.send_form(text_part("purpose", "batch"), file_part(content, filename))
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def create(self, file_id: str | None = None, **members: object) -> dict[str, Any]:
        """Create a batch, a second after whatever was before."""
        self.served.clock.time += 1
        order = {"input_file_id": file_id or self.upload()["id"], "completion_window": "24h"}
        answer = self.send_json(order | members)
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def openai(self) -> OpenAI:
        """Return the untouched client, which checks every answer strictly."""
        return OpenAI(base_url=f"{self.served.url}/v1", api_key=self.key, _strict_response_validation=True)

    def async_openai(self) -> AsyncOpenAI:
        """Return the same for asyncio."""
        return AsyncOpenAI(base_url=f"{self.served.url}/v1", api_key=self.key, _strict_response_validation=True)

    def blobs(self) -> dict[str, tuple[str, int]]:
        """Return the state and the references of each blob row of this organisation."""
        mine = select(blob).where(blob.c.organisation_id == self.id)
        rows = self.served.rows(lambda tx: tx.connection.execute(mine).all())
        return {row.key: (row.state, row.refs) for row in rows}

    def bytes_on_disk(self) -> set[str]:
        """Return which of those keys have bytes, half-written ones included."""
        return set(self.served.blobs.keys(before=math.inf)) & self.blobs().keys()


def check(answer: Answer, *, envelope: bool) -> None:
    """Assert what holds for every answer of the API."""
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["msh-request-id"] == answer.headers["x-request-id"]
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/json"
        if envelope:
            assert list(answer.json) == ["error"]
            assert list(answer.json["error"]) == ["message", "type", "param", "code"]


def text_part(name: str, value: str) -> bytes:
    """Return a text part of a form."""
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def file_part(content: bytes, filename: str | bytes = "input.jsonl") -> bytes:
    """Return the file's part."""
    name = filename.encode() if isinstance(filename, str) else filename
    head = b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n'
    return head + b"Content-Type: application/octet-stream\r\n\r\n" + content


def form(*parts: bytes) -> tuple[str, bytes]:
    """Return a form's Content-Type and its bytes."""
    opened = b"".join(b"--" + _BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return f"multipart/form-data; boundary={_BOUNDARY}", opened + b"--" + _BOUNDARY.encode() + b"--\r\n"


def pieces(body: bytes, size: int = 7) -> Iterable[bytes]:
    """Cut a body into small pieces, which http.client sends chunked and without a length."""
    return (body[start : start + size] for start in range(0, len(body), size))

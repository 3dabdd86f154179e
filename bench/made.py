"""A batch in progress, made as the Validator leaves it: its rows, its input and its Plan."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from batchmill.blobs.blobs import Blobs, Written
from batchmill.blobs.disk import DiskBlobs
from batchmill.clock import SystemClock
from batchmill.schedule.plan import Record, cut, pack
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import BatchObject
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, insert_batch
from batchmill.store.blob import insert_writing, publish_blob
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.organisation import insert_organisation
from batchmill.store.slice import Slice, insert_slices

MODEL = "m"
BODY = b'{"model": "m"}'


class Made:
    """Rows and bytes of one organisation: in one folder, or where they are said to be."""

    def __init__(
        self,
        folder: Path,
        *,
        database: Database | None = None,
        blobs: Blobs | None = None,
        fsync: Callable[[int], None] = os.fsync,
    ) -> None:
        self.clock = SystemClock()
        self.blobs = blobs or DiskBlobs(folder=folder / "blobs", fsync=fsync)
        self.database = database or SqliteDatabase(path=folder / "rows.sqlite3", clock=self.clock)
        self.organisation = mint_id("org", self.clock.now())

    async def prepare(self) -> None:
        """Make the tables and the organisation."""
        await self.database.write(migrate)
        await self.database.write(
            lambda tx: insert_organisation(tx, organisation_id=self.organisation, name="bench", now=1)
        )

    def write(self, key: str, pieces: Iterable[bytes]) -> Written:
        """Write a blob."""
        writer = self.blobs.writer(key)
        for piece in pieces:
            writer.write(piece)
        return writer.finish()

    async def batch(self, lines: int, body: bytes = BODY) -> str:
        """Make a batch of so many lines with this body; return its id."""
        now = self.clock.now()
        batch_id, records = mint_id("batch", now), list[Record]()

        def text() -> Iterator[bytes]:
            at = 0
            for number in range(lines):
                token = b'"request-%d"' % number
                line = b'{"custom_id": %b, "method": "POST", "url": "/v1/chat/completions", "body": %b}' % (token, body)
                spans = (14, len(token), line.index(body), len(body))
                records.append(Record(at, len(line), number + 1, *spans, 0, len(body) // 4, 0))
                at += len(line) + 1
                yield line + b"\n"

        keys = {f"{batch_id}-input": text(), f"{batch_id}-plan": (pack(record) for record in records)}
        written = {key: self.write(key, pieces) for key, pieces in keys.items()}
        slices = [
            Slice(
                batch_id=batch_id,
                organisation_id=self.organisation,
                ordinal=ordinal,
                model=MODEL,
                first=c.first,
                lines=c.lines,
                bytes=c.bytes,
                done=bytes((c.lines + 7) // 8),
                epoch=0,
            )
            for ordinal, c in enumerate(cut(records))
        ]
        facts = BatchObject(
            id=batch_id,
            endpoint="/v1/chat/completions",
            input_file_id="file_bench",
            completion_window="1h",
            status=Status.VALIDATING,
            created_at=int(now),
            expires_at=int(now) + 3600,
        )
        added = Batch(
            organisation_id=self.organisation,
            object=facts,
            input_key=f"{batch_id}-input",
            plan_key=None,
            output_expires_after=None,
            epoch=0,
        )

        def statements(tx: Transaction) -> None:
            for key, bytes_ in written.items():
                insert_writing(tx, key=key, organisation_id=self.organisation, now=int(now))
                publish_blob(tx, key=key, size=bytes_.bytes, sha256=bytes_.sha256)
            insert_batch(tx, added)
            values = {"total": lines, "open_slices": len(slices), "plan_key": f"{batch_id}-plan"}
            advance(tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.ACCEPTED, now=int(now), values=values)
            insert_slices(tx, slices)

        await self.database.write(statements)
        return batch_id

"""What a client does, as the API does it: upload, create, cancel, delete, straight on the rows and the bytes."""

from collections.abc import Callable
from dataclasses import dataclass

from batchmill.blobs.blobs import Blobs
from batchmill.clock import Clock
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import BatchObject, FileObject
from batchmill.spec.states import Event, Status, next_status
from batchmill.spec.steer import STEERED
from batchmill.store.batch import Batch, advance, find_batch, insert_batch
from batchmill.store.blob import drop_refs, insert_writing, publish_blob, refer
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, delete_file, find_file, insert_file
from batchmill.store.organisation import insert_organisation

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The client of one organisation."""

    organisation_id: str
    database: Database
    blobs: Blobs
    clock: Clock

    @property
    def _now(self) -> int:
        return int(self.clock.now())

    async def join(self) -> None:
        """Add the organisation."""
        await self.database.write(
            lambda tx: insert_organisation(
                tx, organisation_id=self.organisation_id, name=self.organisation_id, now=self._now
            )
        )

    async def upload(self, content: bytes) -> File:
        """Upload an input file."""
        key = mint_id("upload", self.clock.now())
        mine = self.organisation_id
        await self.database.write(lambda tx: insert_writing(tx, key=key, organisation_id=mine, now=self._now))
        writer = self.blobs.writer(key)
        writer.write(content)
        written = writer.finish()
        facts = FileObject(
            id=mint_id("file", self.clock.now()),
            bytes=written.bytes,
            created_at=self._now,
            filename="in.jsonl",
            purpose="batch",
        )
        added = File(organisation_id=mine, blob_key=key, object=facts)

        def statements(tx: Transaction) -> None:
            publish_blob(tx, key=key, size=written.bytes, sha256=written.sha256)
            insert_file(tx, added)

        await self.database.write(statements)
        return added

    async def create(self, file: File, *, window: int) -> str:
        """Create a batch over a File that is there, with a window of so many seconds; return its id."""
        facts = BatchObject(
            id=mint_id("batch", self.clock.now()),
            endpoint=CHAT,
            input_file_id=file.object.id,
            completion_window="1h",
            status=Status.VALIDATING,
            created_at=self._now,
            expires_at=self._now + window,
        )
        added = Batch(
            organisation_id=self.organisation_id,
            input_key=file.blob_key,
            plan_key=None,
            output_expires_after=None,
            epoch=0,
            object=facts,
        )

        def statements(tx: Transaction) -> None:
            refer(tx, key=file.blob_key)
            insert_batch(tx, added)

        await self.database.write(statements)
        return facts.id

    async def cancel(self, batch_id: str) -> bool:
        """Cancel a batch; False if it is past that."""

        def statements(tx: Transaction) -> bool:
            found = find_batch(tx, organisation_id=self.organisation_id, batch_id=batch_id)
            assert found is not None
            status = found.object.status
            if next_status(status, Event.CANCEL) is None:
                return False
            return status is Status.CANCELLING or advance(
                tx, batch_id=batch_id, status=status, event=Event.CANCEL, now=self._now
            )

        return await self.database.write(statements)

    async def steer(self, batch_id: str, change: Callable[[Transaction, Batch], bool]) -> bool:
        """Pause, resume or change a batch; False if it is past that, or as it should be already."""

        def statements(tx: Transaction) -> bool:
            found = find_batch(tx, organisation_id=self.organisation_id, batch_id=batch_id)
            assert found is not None
            return found.object.status in STEERED and change(tx, found)

        return await self.database.write(statements)

    async def delete(self, file_id: str) -> bool:
        """Delete a File; False if it is not there."""

        def statements(tx: Transaction) -> bool:
            key = delete_file(tx, organisation_id=self.organisation_id, file_id=file_id)
            if key is not None:
                drop_refs(tx, key=key)
            return key is not None

        return await self.database.write(statements)

    async def read(self, file_id: str | None) -> bytes:
        """Return a File's bytes; none where there is no File."""
        if file_id is None:
            return b""
        file = await self.database.read(
            lambda tx: find_file(tx, organisation_id=self.organisation_id, file_id=file_id, now=self._now)
        )
        assert file is not None, f"{file_id} is named by its batch and is not there"
        return self.blobs.read(file.blob_key, offset=0, length=file.object.bytes)

"""The rows of one `batchmill run`: one organisation, the input as a File whose bytes lie outside, one live batch."""

from dataclasses import dataclass

from batchmill.blobs.in_place import OutsideFile
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import BatchObject, FileObject
from batchmill.spec.states import Status
from batchmill.store.batch import Batch, insert_batch, list_batches
from batchmill.store.blob import blob_sha256, insert_writing, publish_blob, refer
from batchmill.store.database import Transaction
from batchmill.store.file import File, find_file, insert_file
from batchmill.store.organisation import find_organisation, insert_organisation

_ORGANISATION = "run"
_NO_WINDOW_DAYS = 3650  # a run never expires


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The batch of a run, the key of its input, and what that was when the run began: its size and its SHA-256."""

    batch: Batch
    key: str
    bytes: int
    sha256: str


def find_run(tx: Transaction) -> Known | None:
    """Return the run that the state holds; one whose data was bad is none: nothing was sent, so it begins anew."""
    organisation_id = find_organisation(tx, name=_ORGANISATION)
    if organisation_id is None:
        return None
    (batch,) = list_batches(tx, organisation_id=organisation_id, after=None, limit=1)
    if batch.object.status is Status.FAILED:
        return None
    file = find_file(tx, organisation_id=organisation_id, file_id=batch.object.input_file_id, now=0)
    sha256 = None if file is None else blob_sha256(tx, key=file.blob_key)
    if file is None or sha256 is None:
        raise ValueError(f"{batch.id} has no input file")
    return Known(batch=batch, key=file.blob_key, bytes=file.object.bytes, sha256=sha256)


def begin_run(tx: Transaction, *, file: OutsideFile, endpoint: str, now: float) -> Known:
    """Make the rows of a new run: the input as a File with its size and SHA-256, and the batch."""
    organisation_id = find_organisation(tx, name=_ORGANISATION)
    if organisation_id is None:
        organisation_id = mint_id("org", now)
        insert_organisation(tx, organisation_id=organisation_id, name=_ORGANISATION, now=int(now))
    key = mint_id("input", now)
    insert_writing(tx, key=key, organisation_id=organisation_id, now=int(now))
    publish_blob(tx, key=key, size=file.bytes, sha256=file.sha256)
    facts = FileObject(
        id=mint_id("file", now), bytes=file.bytes, created_at=int(now), filename=file.path.name, purpose="batch"
    )
    insert_file(tx, File(organisation_id=organisation_id, blob_key=key, object=facts))
    refer(tx, key=key)  # the batch's own reference
    batch = Batch(
        organisation_id=organisation_id,
        input_key=key,
        plan_key=None,
        output_expires_after=None,
        epoch=0,
        object=BatchObject(
            id=mint_id("batch", now),
            endpoint=endpoint,
            input_file_id=facts.id,
            completion_window=f"{_NO_WINDOW_DAYS}d",
            status=Status.VALIDATING,
            created_at=int(now),
            expires_at=int(now) + _NO_WINDOW_DAYS * 86_400,
        ),
    )
    insert_batch(tx, batch)
    return Known(batch=batch, key=key, bytes=file.bytes, sha256=file.sha256)


def result_keys(tx: Transaction, batch: Batch) -> tuple[str | None, str | None]:
    """Return the keys of a final batch's output and errors; None where it has none."""
    ids = (batch.object.output_file_id, batch.object.error_file_id)
    output, errors = (None if i is None else _blob_key(tx, batch, i) for i in ids)
    return output, errors


def _blob_key(tx: Transaction, batch: Batch, file_id: str) -> str:
    file = find_file(tx, organisation_id=batch.organisation_id, file_id=file_id, now=0)
    if file is None:
        raise ValueError(f"{batch.id} has lost {file_id}")
    return file.blob_key

"""Makes Files and batches in the rows: one way in for uploads, orders over a File, and orders that bring their own."""

from batchmill.blobs.blobs import Written
from batchmill.spec import errors
from batchmill.spec.budgets import day_refusal
from batchmill.spec.create import CreateOrder
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.spec.objects import BatchObject, FileObject
from batchmill.spec.states import Status
from batchmill.spec.usage import day_of
from batchmill.store.batch import Batch, insert_batch
from batchmill.store.blob import BlobGone, publish_blob, refer
from batchmill.store.database import Transaction
from batchmill.store.file import File, count_files, find_file, insert_file
from batchmill.store.organisation import Allowance, lock_organisation
from batchmill.store.usage import tokens_used


def new_file(
    *,
    organisation_id: str,
    key: str,
    filename: str,
    size: int,
    now: float,
    lasts: int | None,
    file_id: str | None = None,
) -> File:
    """Return a File of purpose batch over these bytes, which `lasts` so many seconds, None for ever."""
    return File(
        organisation_id=organisation_id,
        blob_key=key,
        object=FileObject(
            id=file_id or mint_id("file", now),
            bytes=size,
            created_at=int(now),
            filename=filename,
            purpose="batch",
            expires_at=None if lasts is None else int(now) + lasts,
        ),
    )


def publish_file(tx: Transaction, added: File, written: Written, *, limits: Limits, allowance: Allowance) -> None:
    """Add a File and publish its bytes, if the organisation's quotas allow it.

    Raises:
        ApiError: they do not.
    """
    lock_organisation(tx, organisation_id=added.organisation_id)
    count, stored = count_files(tx, organisation_id=added.organisation_id, purpose=added.object.purpose)
    most = limits.max_files if allowance.max_files is None else allowance.max_files
    if count >= most:
        raise errors.invalid_value("file", f"You have {count} files; at most {most} are allowed.")
    size = limits.max_stored_bytes if allowance.max_bytes is None else allowance.max_bytes
    if size is not None and stored + added.object.bytes > size:
        raise errors.invalid_value("file", f"All your files together may have {size} bytes at most.")
    publish_blob(tx, key=added.blob_key, size=written.bytes, sha256=written.sha256)
    insert_file(tx, added)


def input_file(tx: Transaction, *, organisation_id: str, file_id: str, now: float) -> File:
    """Return the File of the organisation that an order is over.

    Raises:
        ApiError: there is none of this id, or it is no input.
    """
    file = find_file(tx, organisation_id=organisation_id, file_id=file_id, now=int(now))
    if file is None:
        raise errors.unknown_input_file()
    if file.object.purpose != "batch":
        raise errors.invalid_value("input_file_id", "The input file must have the purpose 'batch'.")
    return file


def add_batch(
    tx: Transaction,
    order: CreateOrder,
    file: File,
    *,
    key_id: str | None,
    allowance: Allowance,
    now: float,
    parent_id: str | None = None,
    retry_group: str | None = None,
) -> Batch:
    """Add a batch in `validating`, with a reference of its own to the File's bytes; `key_id` is that of who asks.

    With `parent_id` it retries that batch's failed lines: which of them, `retry_group` says (`spec/family.py`).
    What is used up is asked first. How many tokens a batch has, and what it costs, only its validation knows: the
    budgets of those are the Validator's.

    Raises:
        ApiError: the organisation has used up its tokens of today, or the File was deleted since it was found.
    """
    _refuse_over_budget(tx, organisation_id=file.organisation_id, allowance=allowance, now=now)
    try:
        refer(tx, key=file.blob_key)
    except BlobGone as gone:
        raise errors.unknown_input_file() from gone
    added = Batch(
        organisation_id=file.organisation_id,
        key_id=key_id,
        input_key=file.blob_key,
        plan_key=None,
        output_expires_after=order.output_expires_after,
        epoch=0,
        retry_group=retry_group,
        object=BatchObject(
            parent_id=parent_id,
            id=mint_id("batch", now),
            endpoint=order.endpoint,
            input_file_id=file.object.id,
            completion_window=order.completion_window,
            status=Status.VALIDATING,
            created_at=int(now),
            expires_at=int(now) + order.window_seconds,
            metadata=order.metadata,
        ),
    )
    insert_batch(tx, added)
    return added


def _refuse_over_budget(tx: Transaction, *, organisation_id: str, allowance: Allowance, now: float) -> None:
    """Refuse a new batch where the day's tokens are used up.

    No lock is held over it: what is used grows with each group commit, and nothing here adds to it.
    """
    if allowance.tokens_per_day is None:
        return
    used = tokens_used(tx, organisation_id=organisation_id, day=day_of(now))
    refusal = day_refusal(used=used, limit=allowance.tokens_per_day, now=now)
    if refusal is not None:
        raise refusal

"""What a fault is to the client: no fault of ours reaches it as anything but our envelope."""

import errno
import sqlite3

from sqlalchemy.exc import InterfaceError, OperationalError

from batchmill.blobs.blobs import BlobsAway
from batchmill.blobs.space import is_full
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.store.database import DatabaseAway

SPACE_SECONDS = 60.0  # space is made by people
AWAY = (DatabaseAway, BlobsAway)  # outages of what this process leans on, which say all that there is to say
_AWAY_SECONDS = 5.0  # a database or a bucket comes back by itself


def is_broken(fault: Exception) -> bool:
    """Say whether a disk failed beneath a read or a write: whoever saw that ends, and what starts anew recovers.

    A failed fsync is never tried again: the next one may report success for bytes that are lost (reliability, 4).
    """
    code = getattr(getattr(fault, "orig", None), "sqlite_errorcode", 0)
    return (isinstance(fault, OSError) and fault.errno == errno.EIO) or code & 0xFF == sqlite3.SQLITE_IOERR


def as_api_error(fault: Exception) -> ApiError:
    """Return the answer to a fault: 507 for a disk without room, 503 for rows or bytes away (choice 16), else 500."""
    if isinstance(fault, ApiError):
        return fault
    if is_full(fault):
        return errors.insufficient_storage(SPACE_SECONDS)
    if isinstance(fault, (DatabaseAway, OperationalError, InterfaceError)):
        return errors.unavailable("The database does not answer. Try again later.", _AWAY_SECONDS)
    if isinstance(fault, BlobsAway):
        return errors.unavailable("The storage of files does not answer. Try again later.", _AWAY_SECONDS)
    return errors.server_error()

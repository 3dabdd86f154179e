"""What a fault is to the client: no fault of ours reaches it as anything but our envelope."""

import errno

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from batchmill.spec import errors
from batchmill.spec.errors import ApiError

_SPACE_SECONDS = 60.0  # space is made by people
_DATABASE_SECONDS = 5.0  # a database comes back by itself


def as_api_error(fault: Exception) -> ApiError:
    """Return the answer to a fault: 507 for a full disk, 503 for a database that is away (choice 16), else 500."""
    if isinstance(fault, ApiError):
        return fault
    if _is_full_disk(fault):
        return errors.insufficient_storage(_SPACE_SECONDS)
    if isinstance(fault, (OperationalError, InterfaceError)):
        return errors.unavailable("The database does not answer. Try again later.", _DATABASE_SECONDS)
    return errors.server_error()


def _is_full_disk(fault: Exception) -> bool:
    if isinstance(fault, DBAPIError):
        return getattr(fault.orig, "sqlite_errorname", "") == "SQLITE_FULL"
    return isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT)

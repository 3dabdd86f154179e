"""Every error that the API answers with, each knowing its HTTP status, type, code and param.

The types are those of contract a.0, "Error vocabulary"; the messages are ours, and no client may depend on them.
There is one class; the functions below make one for each case of the contract.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

CLIP = 64  # characters of a user's own text that a message may echo
MAX_RETRY_AFTER = 60  # seconds: above it the older official client stops obeying the header (contract f.8)


class ApiError(Exception):
    """An answer other than success, in the four-key envelope of contract a.0."""

    def __init__(
        self,
        *,
        status: int,
        type: str,  # noqa: A002 - the wire's own name
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers)

    def body(self) -> dict[str, object]:
        """Return the envelope; all four keys are always there."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def clip(text: str) -> str:
    """Return the user's own text as a message may echo it: quoted, escaped, at most CLIP characters of it."""
    return repr(text if len(text) <= CLIP else text[: CLIP - 1] + "…")


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the 400 for anything wrong with what the client sent."""
    return ApiError(status=400, type="invalid_request_error", message=message, code=code, param=param)


def missing_parameter(param: str) -> ApiError:
    """Return the 400 for a required member that is not there (contract c.3, row 8)."""
    return invalid_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def invalid_type(param: str | None, expected: str) -> ApiError:
    """Return the 400 for a member of the wrong JSON type (contract c.3, row 9); `expected` reads as "a string"."""
    name = "The request body" if param is None else f"'{param}'"
    return invalid_request(f"{name} must be {expected}.", param, "invalid_type")


def invalid_value(param: str, message: str) -> ApiError:
    """Return the 400 for a member whose value is not allowed."""
    return invalid_request(message, param, "invalid_value")


def unknown_input_file() -> ApiError:
    """Return the 400 for an input file that is unknown, deleted or another tenant's (contract c.3, row 13)."""
    return invalid_value("input_file_id", "No such file. Upload the input with purpose 'batch' and pass its id.")


def not_cancellable(status: str) -> ApiError:
    """Return the 400 for a cancel in a final state; never 409, which the official clients retry (choice 6)."""
    return invalid_request(f"A batch that is {status} cannot be cancelled.", code="invalid_batch_state")


def not_steerable(status: str, done: str) -> ApiError:
    """Return the 400 for steering a batch of which nothing is sent any more; `done` reads as "paused"."""
    return invalid_request(f"A batch that is {status} cannot be {done}.", code="invalid_batch_state")


def too_big(what: str, limit: int, param: str | None = None) -> ApiError:
    """Return the 400 (never 413, contract a.0) for something larger than `limit` bytes."""
    return invalid_request(f"{what} is larger than {limit} bytes.", param, "invalid_value")


def unauthenticated() -> ApiError:
    """Return the one 401, whatever is wrong with the key (choice 10)."""
    return ApiError(
        status=401,
        type="incorrect_api_key_error",
        message="No valid API key was given. Send it as 'Authorization: Bearer <key>'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def permission_denied(message: str) -> ApiError:
    """Return the 403 for a key that may not do this."""
    return ApiError(status=403, type="permission_denied_error", message=message, code="insufficient_permissions")


def not_found(what: str) -> ApiError:
    """Return the 404 for "file", "batch", "model" or "key": one answer for what is not there and what is not yours."""
    return ApiError(status=404, type="resource_not_found_error", message=f"No such {what}.", code="resource_not_found")


def results_gone(batch_id: str) -> ApiError:
    """Return the 404 for results whose files their owner has deleted, or that have expired."""
    message = f"The result files of {batch_id} are deleted or have expired."
    return ApiError(status=404, type="resource_not_found_error", message=message, code="results_gone")


def unknown_route() -> ApiError:
    """Return the 404 for a path that is nobody's."""
    message = (
        "No such route. /openapi.json has all of them, /v1/files, /v1/batches and /v1/models among them; no last slash."
    )
    return ApiError(status=404, type="resource_not_found_error", message=message, code="unknown_url")


def method_not_allowed(allowed: Collection[str]) -> ApiError:
    """Return the 405; `allowed` are the methods of this path."""
    names = ", ".join(sorted(allowed))
    return ApiError(
        status=405,
        type="invalid_request_error",
        message=f"This route takes {names} only.",
        code="method_not_allowed",
        headers={"Allow": names},
    )


def conflict(message: str, *, retry_after: float | None = None) -> ApiError:
    """Return the 409 of the idempotency rules (contract a.9, choice 13).

    With `retry_after`, in seconds, the official client tries again; without, it does not.
    """
    again = {"x-should-retry": "false"}
    if retry_after is not None:
        again = {"x-should-retry": "true", "Retry-After": _seconds(retry_after)}
    return ApiError(status=409, type="conflict_error", message=message, code="idempotency_conflict", headers=again)


def request_timeout(message: str) -> ApiError:
    """Return the 408 for a body that does not come; the client may try again."""
    return ApiError(status=408, type="invalid_request_error", message=message, code="request_timeout")


def target_too_long(limit: int) -> ApiError:
    """Return the 414 for a path and query of more than `limit` bytes."""
    message = f"The path and the query are longer than {limit} bytes."
    return ApiError(status=414, type="invalid_request_error", message=message, code="target_too_long")


def head_too_large(limit: int) -> ApiError:
    """Return the 431 for a request line and headers of more than `limit` bytes."""
    message = f"The request's headers are larger than {limit} bytes."
    return ApiError(status=431, type="invalid_request_error", message=message, code="headers_too_large")


def unsupported_media_type(message: str) -> ApiError:
    """Return the 415: a Content-Type or Content-Encoding that we do not read (choice 11)."""
    return ApiError(status=415, type="invalid_request_error", message=message, code="unsupported_media_type")


def range_not_satisfiable(size: int) -> ApiError:
    """Return the 416: of the bytes asked for, none is among the `size` that are there (RFC 9110, 15.5.17)."""
    return ApiError(
        status=416,
        type="invalid_request_error",
        message=f"The range asked for holds none of the {size} bytes.",
        code="range_not_satisfiable",
        headers={"Content-Range": f"bytes */{size}"},
    )


def rate_limited(retry_after: float) -> ApiError:
    """Return the 429 for too many calls; `retry_after` in seconds."""
    return ApiError(
        status=429,
        type="rate_limit_reached_error",
        message="Too many requests. Try again later.",
        code="rate_limit_exceeded",
        headers={"Retry-After": _seconds(retry_after)},
    )


def tokens_used_up(message: str, *, retry_after: int) -> ApiError:
    """Return the 429 for a budget of tokens that is used up until `retry_after` seconds from now.

    The time is told as it is; the official client, which obeys no more than a minute, is told not to try meanwhile.
    """
    return ApiError(
        status=429,
        type="rate_limit_reached_error",
        message=message,
        code="token_limit_exceeded",
        headers={"Retry-After": str(retry_after), "x-should-retry": "false"},
    )


def quota_exceeded(message: str) -> ApiError:
    """Return the 429 that waiting does not mend (contract f.8)."""
    return ApiError(
        status=429,
        type="exceeded_current_quota_error",
        message=message,
        code="insufficient_quota",
        headers={"x-should-retry": "false"},
    )


def server_error() -> ApiError:
    """Return the 500: a fault of ours; the request id leads to the log line."""
    return ApiError(status=500, type="server_error", message="Something went wrong on our side.", code="internal_error")


def unavailable(message: str, retry_after: float) -> ApiError:
    """Return the 503: the database or another part is away; `retry_after` in seconds (choice 16)."""
    return ApiError(
        status=503,
        type="server_unavailable",
        message=message,
        code="unavailable",
        headers={"Retry-After": _seconds(retry_after)},
    )


def insufficient_storage(retry_after: float) -> ApiError:
    """Return the 507: the disk is full, and sending it all again at once would not help (choice 16)."""
    return ApiError(
        status=507,
        type="insufficient_storage",
        message="The server has no space left for this. Delete files, or try again later.",
        code="insufficient_storage",
        headers={"Retry-After": _seconds(retry_after), "x-should-retry": "false"},
    )


def _seconds(retry_after: float) -> str:
    return str(min(max(1, round(retry_after)), MAX_RETRY_AFTER))

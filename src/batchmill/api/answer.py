"""Answers as JSON, and what a JSON route reads: bodies, query numbers, cursors."""

import re
import secrets
from collections.abc import Mapping

import msgspec
from fastapi import Request, Response

from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.rules import UNREADABLE

_ID = re.compile(r"[a-z]+_[0-9a-f]{46}")


def json_answer(value: Mapping[str, object], *, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def request_id_headers() -> list[tuple[bytes, bytes]]:
    """Return the two headers that name a request, with a new id (choice 7)."""
    request_id = f"req_{secrets.token_hex(16)}".encode()
    return [(b"x-request-id", request_id), (b"msh-request-id", request_id)]


def error_answer(error: ApiError) -> Response:
    """Return the envelope of an error (contract a.0)."""
    answer = json_answer(error.body(), status=error.status)
    answer.headers.update(error.headers)
    return answer


async def read_json(request: Request, *, limit: int, optional: bool = False) -> object:
    """Return the decoded JSON body; at most `limit` bytes of it are ever held. An `optional` one that is empty is {}.

    Raises:
        ApiError: it is larger, or no JSON.
    """
    body = await read_body(request, limit=limit, optional=optional)
    try:
        return msgspec.json.decode(body) if body else {}
    except UNREADABLE as fault:
        raise unreadable(fault) from fault


async def read_body(request: Request, *, limit: int, optional: bool = False) -> bytearray:
    """Return the body as it came; at most `limit` bytes of it are ever held. An `optional` one may be empty.

    Raises:
        ApiError: it is larger, or there is none.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise errors.too_big("The request body", limit)
    if not (body or optional):
        raise errors.invalid_request("The request body is empty: send a JSON object.")
    return body


def unreadable(fault: Exception) -> ApiError:
    """Return the 400 for a body that is no JSON, by what its decoder raised."""
    what = str(fault).removeprefix("JSON is malformed: ")
    return errors.invalid_request(f"The request body cannot be read as JSON: {what}.")


def query_limit(request: Request, *, default: int, most: int) -> int:
    """Return the page length that the query asks for (contract a.8, g-10)."""
    text = query_word(request, "limit")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):  # noqa: PLR2004 - digits
        raise errors.invalid_value("limit", f"'limit' must be a whole number from 1 to {most}.")
    return int(text)


def query_after(request: Request, *, prefix: str) -> str | None:
    """Return the cursor: an id whose successors are asked for.

    Ids sort by creation, so the item itself need not exist any more: a client may delete what it lists, and an id of
    another organisation is no different from an unknown one. What is no id of ours is refused, never read as "from
    the top" (contract g-10).
    """
    return query_id(request, "after", prefix=prefix)


def query_id(request: Request, name: str, *, prefix: str) -> str | None:
    """Return a query parameter that is an id of this kind, whether it is there or not; None if it is left out."""
    value = query_word(request, name)
    if value is not None and not (value.startswith(f"{prefix}_") and _ID.fullmatch(value)):
        raise errors.invalid_value(name, f"'{name}' must be the id of a {prefix}.")
    return value


def query_choice(request: Request, name: str, choices: tuple[str, ...], *, default: str) -> str:
    """Return a query parameter that is one of a few words."""
    value = query_word(request, name)
    if value is None:
        return default
    if value not in choices:
        raise errors.invalid_value(name, f"'{name}' must be one of: {', '.join(choices)}.")
    return value


def query_choices(request: Request, name: str, choices: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return a query parameter that is a list of some of these words, with commas; None if it is not there."""
    value = query_word(request, name)
    if value is None:
        return None
    words = tuple(value.split(","))
    if not set(words) <= set(choices):
        raise errors.invalid_value(name, f"'{name}' must be one of, or several with commas: {', '.join(choices)}.")
    return words


def query_word(request: Request, name: str) -> str | None:
    """Return a query parameter; None if it is not there. It may stand once: nobody can tell which of two was meant."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise errors.invalid_value(name, f"'{name}' stands more than once in the query.")
    if values and not (values[0].isascii() and values[0].isprintable()):  # a NUL would be an error in PostgreSQL
        raise errors.invalid_value(name, f"'{name}' must be printable ASCII.")
    return values[0] if values else None

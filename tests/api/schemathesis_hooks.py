"""What schemathesis cannot know of good requests: how a request line looks, and that a key stands for one of them."""

import os
import re
import secrets
from typing import Any

import schemathesis
from hypothesis import strategies as st

from api.served import LINE

_KEY = re.compile("[!-~]{1,200}")

schemathesis.openapi.media_type(
    "application/jsonl",
    st.one_of(st.integers(1, 3).map(lambda count: LINE * count), st.binary(min_size=1, max_size=100)),
)


@schemathesis.hook
def map_headers(_context: schemathesis.HookContext, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let a good Idempotency-Key come once: said again, it is answered with a File that may be deleted by now."""
    key = (headers or {}).get("Idempotency-Key")
    if headers and isinstance(key, str) and _KEY.fullmatch(key):
        return headers | {"Idempotency-Key": key + secrets.token_hex(8)}
    return headers


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: schemathesis.Case, _kwargs: dict[str, Any]) -> None:
    """Spare the File that is given to all, and the key that asks: once one is gone, most of the chains are refusals.

    A stream of events is asked for by tests of its own.
    """
    if case.query and case.path.endswith("/results"):  # whoever waits there waits by a clock that stands still
        for name in ("follow", "wait"):
            case.query.pop(name, None)
    named = case.path_parameters or {}
    if case.method == "DELETE" and named.get("file_id") == os.environ["INPUT_FILE_ID"]:
        case.path_parameters["file_id"] = f"file_{secrets.token_hex(23)}"
    if str((case.query or {}).get("stream")).lower() == "true":  # it would be read to its end, and there is none
        case.query["stream"] = "false"
    if named.get("key_id") == os.environ["KEY_ID"]:
        case.path_parameters["key_id"] = f"key_{secrets.token_hex(23)}"

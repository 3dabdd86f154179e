"""What is told of each request: the line in the log that can be asked for."""

from collections.abc import Callable, MutableMapping
from typing import Any

from structlog.contextvars import get_contextvars

from api.served import Served

Logged = list[MutableMapping[str, Any]]


def test_each_request_has_a_line_if_so_asked(serve: Callable[..., Served], logged: Logged) -> None:
    """Method, route, status, time and who asked; nothing of a query, of a path that is none, or of a strange method."""
    served = serve(access_log=True)
    tenant = served.tenant()
    tenant.call("GET", "/v1/batches?limit=1&after=secret")
    tenant.call("GET", "/v1/batches/batch_secret")
    tenant.call("GET", "/secret/path")
    served.call("GET", "/v1/files?key=secret")
    served.call("PROPFIND", "/v1/files")
    lines = [entry for entry in logged if entry["event"] == "request"]
    told = [(line["method"], line["route"], line["status"], line["organisation"]) for line in lines]
    assert told == [
        ("GET", "/v1/batches", 400, tenant.id),
        ("GET", "/v1/batches/{batch_id}", 404, tenant.id),
        ("GET", None, 404, tenant.id),
        ("GET", None, 401, None),
        ("_OTHER", None, 401, None),
    ]
    assert all(line["ms"] >= 0 for line in lines)
    assert lines[0]["key"].startswith("key_")
    assert "secret" not in str(lines)


def test_no_request_has_a_line_unless_asked(serve: Callable[..., Served], logged: Logged) -> None:
    """By default only what is wrong is logged."""
    serve().tenant().call("GET", "/v1/files")
    assert logged == []
    assert get_contextvars() == {}

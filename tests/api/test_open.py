import inspect
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from api.served import Served
from batchmill.spec import errors
from batchmill.spec.limits import OPEN
from batchmill.store.model import BackendState, save_backend
from batchmill.store.worker import insert_worker


def test_the_documents_need_no_key(served: Served) -> None:
    """The OpenAPI document and its page are for everyone."""
    assert served.call("GET", "/docs").status == 200
    document = served.call("GET", "/openapi.json").json
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    }
    assert operations.keys() >= {  # what is ours beside the contract stands in the tables of tenancy
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/{file_id}",
        "DELETE /v1/files/{file_id}",
        "GET /v1/files/{file_id}/content",
        "HEAD /v1/files/{file_id}/content",
        "POST /v1/batches",
        "GET /v1/batches",
        "GET /v1/batches/{batch_id}",
        "POST /v1/batches/{batch_id}/cancel",
        "GET /v1/models",
        "GET /v1/models/{model}",
    }
    assert "multipart/form-data" in operations["POST /v1/files"]["requestBody"]["content"]
    assert "application/json" in operations["POST /v1/batches"]["requestBody"]["content"]
    for name, operation in operations.items():
        assert operation["summary"]
        assert operation["description"]
        assert "422" not in operation["responses"]
        assert ("security" in operation) == ("/v1/" in name)


def test_every_status_that_is_ever_answered_is_documented(served: Served) -> None:
    """Each fault of our own has a response of its own, with the headers that come with it; a 405 is no operation's."""
    document = served.call("GET", "/openapi.json").json
    shared = document["components"]["responses"]
    assert set(re.findall(r"status=(\d{3})", inspect.getsource(errors))) - {"405"} <= shared.keys()
    for status, names in {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "507": ["Retry-After"]}.items():
        assert {name for name, header in shared[status]["headers"].items() if header["required"]} >= {*names}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in {"get", "head"}:
                assert "507" not in operation["responses"], path
            if method == "post":
                assert {"408", "507"} <= operation["responses"].keys(), path


def test_the_headers_of_a_rate_are_documented(served: Served) -> None:
    """Those that an organisation with a rate gets on every answer, each as one that may be left out."""
    paths = served.call("GET", "/openapi.json").json["paths"]
    answer = served.tenant(requests_per_minute=10).call("GET", "/v1/batches")
    documented = paths["/v1/batches"]["get"]["responses"]["200"]["headers"]
    rate = {name.lower(): header["required"] for name, header in documented.items() if "RateLimit" in name}
    assert rate == dict.fromkeys((name for name in answer.headers if "ratelimit" in name), False)


def test_the_document_tells_this_servers_limits(serve: Callable[..., Served]) -> None:
    """An operator's own limits are in it: pages, windows, endpoints and metadata."""
    limits = replace(OPEN, batches_page=5, max_batches_page=7, metadata_pairs=3)
    paths = serve(limits=limits).call("GET", "/openapi.json").json["paths"]
    assert paths["/v1/batches"]["get"]["parameters"][0]["schema"]["maximum"] == 7
    order = paths["/v1/batches"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert order["completion_window"]["pattern"] == "^[1-9][0-9]{0,4}[mhd]$"
    assert order["endpoint"]["enum"] == list(OPEN.endpoints)
    assert order["metadata"]["maxProperties"] == 3


def test_the_page_loads_nothing_from_elsewhere(served: Served) -> None:
    """Everything that `/docs` and its style sheet name is answered by this server, without a key."""
    page = served.call("GET", "/docs").body.decode()
    named = re.findall(r"""(?:src|href)=["']([^"']+)["']|url: ["']([^"']+)["']""", page)
    paths = {path for pair in named for path in pair if path}
    assert len(paths) == 4
    assert not any("//" in path for path in paths)
    assert "://" not in page
    for path in paths:
        assert served.call("GET", path).status == 200
    style = served.call("GET", "/docs/assets/swagger-ui.css").body.decode()
    assert all(url.startswith("data:") for url in re.findall(r"""url\(["']?([^"')]+)""", style))


@pytest.mark.parametrize("path", ["/docs/assets/nothing.js", "/docs/assets/../core.py", "/docs/assets/%2e%2e/core.py"])
def test_only_the_pages_files_are_there(served: Served, path: str) -> None:
    """No other file of the machine is served; another method is told the right ones."""
    assert served.call("GET", path).error == (404, "resource_not_found_error", None, "unknown_url")
    answer = served.call("POST", "/docs/assets/swagger-ui.css")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_living_process_says_so(served: Served) -> None:
    """`/healthz` needs no key and no database."""
    assert served.call("GET", "/healthz").json == {"status": "ok"}
    assert (served.call("HEAD", "/healthz").status, served.call("HEAD", "/healthz").body) == (200, b"")


def test_readiness_names_what_is_missing(serve: Callable[..., Served]) -> None:
    """`/readyz` is a 503 with a reason for each part that is not ready, and a 200 when all are."""
    served = serve()

    def reasons() -> tuple[bool, dict[str, str | None]]:
        facts = served.call("GET", "/readyz").json
        return facts["ready"], {name: check["reason"] for name, check in facts["checks"].items()}

    ready, missing = reasons()
    assert not ready
    assert {name for name, reason in missing.items() if reason} == {"worker", "backends"}
    served.rows(lambda tx: insert_worker(tx, worker_id="worker_1", lease=60.0, now=1))
    unwell = BackendState(name="echo", well=False, reason="it does not answer", since=1)
    served.rows(lambda tx: save_backend(tx, unwell))
    assert reasons() == (
        False,
        {"database": None, "blobs": None, "worker": None, "backends": "echo: it does not answer"},
    )
    served.rows(lambda tx: save_backend(tx, BackendState(name="echo", well=True, reason=None, since=2)))
    assert reasons()[0]


def test_an_api_apart_is_ready_without_workers(serve: Callable[..., Served]) -> None:
    """Where the workers are elsewhere `/readyz` tells how they and the backends are, and asks for neither."""
    facts = serve(apart=True).call("GET", "/readyz")
    assert (facts.status, facts.json["ready"]) == (200, True)
    assert {name for name, check in facts.json["checks"].items() if check["reason"]} == {"worker", "backends"}


def test_a_database_without_tables_is_not_ready(serve: Callable[..., Served]) -> None:
    """`/readyz` says so instead of failing."""
    facts = serve(migrated=False).call("GET", "/readyz").json
    assert facts["checks"] == {"database": {"ready": False, "reason": "the database does not answer"}}

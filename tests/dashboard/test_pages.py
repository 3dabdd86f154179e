"""What the server sends of the dashboard, without a browser."""

import re
from collections.abc import Iterator, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from api.served import Served
from batchmill import dashboard
from batchmill.assemble.api import build_api
from batchmill.assemble.storage import Storage
from batchmill.dashboard.pages import HEADERS, PREFIX, dashboard_pages
from batchmill.settings import load_settings
from fakeclock import FakeClock

_STATIC = Path(dashboard.__file__).parent / "static"
_FILES = sorted(path for path in _STATIC.rglob("*") if path.is_file())
_MODULES = [path for path in _FILES if path.suffix == ".js"]
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API with the dashboard beside it."""
    with closing(Served(tmp_path_factory.mktemp("pages"), pages=dashboard_pages())) as served:
        yield served


def _path(file: Path) -> str:
    name = file.relative_to(_STATIC).as_posix()
    return "/" if name == "index.html" else PREFIX + name


@pytest.mark.parametrize("file", _FILES, ids=_path)
def test_every_file_is_served_without_a_key(served: Served, file: Path) -> None:
    """Each comes as it is, with its type and with the headers that hold a page to our own code."""
    answer = served.call("GET", _path(file))
    assert (answer.status, answer.body) == (200, file.read_bytes())
    assert answer.headers["content-type"].startswith(_TYPES[file.suffix])
    assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS
    head = served.call("HEAD", _path(file))
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(file.read_bytes())))


def test_the_policy_lets_nothing_run_but_our_files() -> None:
    """No inline code, no other host, no frame, no text that becomes HTML."""
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "*" not in policy
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"):
        assert part in policy


def test_a_file_that_the_browser_has_is_not_sent_again(served: Served) -> None:
    """Its ETag brings 304 without a body, another one the file."""
    etag = served.call("GET", "/").headers["etag"]
    again = served.call("GET", "/", If_None_Match=f'"x", {etag}')
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert served.call("GET", "/", If_None_Match='"x"').status == 200


def test_other_paths_stay_what_they_are(served: Served) -> None:
    """What is no file of ours is a 401 without a key, a 404 with one; a file is only read."""
    tenant = served.tenant()
    for path in (f"{PREFIX}none.js", f"{PREFIX}../pages.py", PREFIX, "/dashboard", "/index.html", "/v1/none"):
        assert served.call("GET", path).status == 401
        assert tenant.call("GET", path).error == (404, "resource_not_found_error", None, "unknown_url")
    assert tenant.call("POST", "/").status == 405
    assert not any(path.startswith(("/v1", "/docs", "/healthz")) for path in dashboard_pages())


def test_without_the_dashboard_there_is_none(tmp_path: Path) -> None:
    """An API that was not handed its files answers `/` as any path that is none."""
    with closing(Served(tmp_path)) as served:
        assert served.call("GET", "/").status == 401
        assert served.tenant().call("GET", "/").status == 404


@pytest.mark.parametrize("file", [path for path in _FILES if path.suffix in {".js", ".css"}], ids=_path)
def test_a_module_opens_with_its_reason_and_is_short(file: Path) -> None:
    """The first line of each says what it is for, and none is longer than 400 lines."""
    lines = file.read_text().splitlines()
    assert re.fullmatch(r"(// |/\* )[A-Z].*[.]( \*/)?", lines[0])
    assert len(lines) <= 400


@pytest.mark.parametrize("file", _MODULES, ids=_path)
def test_no_module_can_make_code_of_text(file: Path) -> None:
    """None of the ways in which text becomes HTML or code is in use, and none names another host."""
    text = file.read_text().replace("http://www.w3.org/2000/svg", "")
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|https?://"
    assert re.findall(banned, text) == []


def test_the_page_has_nothing_inline() -> None:
    """index.html loads files and holds neither code nor style."""
    page = (_STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|style=|javascript:", page) == []


@pytest.mark.parametrize(("dashboard", "status"), [(True, 200), (False, 401)])
async def test_it_can_be_switched_off(tmp_path: Path, dashboard: bool, status: int) -> None:
    """`serve` shows it unless the setting says no."""
    settings, clock = load_settings({"data": tmp_path, "dashboard": dashboard}), FakeClock()
    storage = Storage(settings=settings, clock=clock, role="api", patience=1.0)
    app = build_api(settings=settings, storage=storage, clock=clock, broken=lambda: None)
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "client": None}
    await app(scope, receive, send)
    assert sent[0]["status"] == status
    await storage.database.close()

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from playwright.async_api import Route, expect

from dashboard.site import Site
from dashboard.tab import Tab

pytestmark = pytest.mark.asyncio(loop_scope="session")
Open = Callable[..., Coroutine[Any, Any, Tab]]
_NEWER = (
    "/v1/organisation",
    "/progress",
    "/results",
    "/requests",
    "/v1/batches/quote",
    "/v1/backends",
    "/v1/usage",
    "/v1/keys",
)
_NO_ROUTE = {"error": {"message": "No such route.", "type": "x", "param": None, "code": "unknown_url"}}


async def _older(route: Route) -> None:
    path = route.request.url.partition("?")[0]
    if path.endswith(_NEWER):
        await route.fulfill(status=404, content_type="application/json", body=json.dumps(_NO_ROUTE))
    else:
        await route.continue_()


async def test_a_server_without_our_routes_is_told_of_in_a_sentence(tab: Open, site: Site) -> None:
    """With the contract's routes alone every page works as far as it can, and says what the server does not offer."""
    key = site.key()
    batch = site.batch(key, ["one", "two"])
    site.finished(key, batch)
    shown = await tab()
    shown.expected.add("404")
    await shown.page.route("**/v1/**", _older)
    await shown.enter(key)
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("2 of 2 lines done")
    await shown.sees("This server does not show lines before the files are there")
    assert len((await shown.saved("Download output")).splitlines()) == 2
    await shown.go("usage", "Usage")
    await shown.sees("This server does not offer “Usage”")
    await shown.go("keys", "Keys")
    await shown.sees("This server does not offer “Keys”")
    await shown.go("backends", "Models and backends")
    await shown.sees("This server does not tell of its backends.")
    await shown.sees("plain")
    file = site.client(key).batches.retrieve(batch).input_file_id
    await shown.go(f"new?file={file}", "New batch")
    await shown.sees("Input: input.jsonl")
    await shown.press("Get a quote")
    await shown.sees("This server gives no quotes")
    await shown.press("Create batch")
    await shown.sees("2 of 2 lines done")


async def test_a_server_that_is_away_is_told_of(tab: Open, site: Site) -> None:
    """What cannot be reached is said to be so, and the page comes back with the server."""
    shown = await tab(site.key())
    shown.expected.add("ERR_FAILED")
    await shown.page.route("**/v1/files**", lambda route: route.abort())
    await shown.go("files", "Files")
    await shown.sees("The server cannot be reached.")
    await shown.page.unroute("**/v1/files**")
    await expect(shown.page.get_by_role("table", name="Files")).to_be_visible()

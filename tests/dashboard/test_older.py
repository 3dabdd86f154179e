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
    "/v1/webhooks",
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
    await shown.go("webhooks", "Webhooks")
    await shown.sees("This server does not offer “Webhooks”")
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


@pytest.mark.parametrize(
    ("status", "said", "logged"),
    [
        (0, "The server cannot be reached.", "ERR_FAILED"),
        (429, "Too many calls.", "429"),
        (503, "The database is away.", "503"),
    ],
)
async def test_what_passes_is_waited_for(tab: Open, site: Site, status: int, said: str, logged: str) -> None:
    """A server that is away or busy, and a rate, are told of; the page comes back by itself, as late as asked for."""
    shown = await tab(site.key())
    shown.expected.add(logged)
    asked: list[str] = []

    async def refuse(route: Route) -> None:
        asked.append(route.request.url)
        if status:
            await route.fulfill(status=status, headers={"Retry-After": "30"}, json={"error": {"message": said}})
        else:
            await route.abort()

    await shown.page.clock.install()
    await shown.page.route("**/v1/files**", refuse)
    await shown.go("files", "Files")
    await shown.sees(said)
    await shown.page.unroute("**/v1/files**")
    await shown.page.clock.fast_forward(3_000)
    table = shown.page.get_by_role("table", name="Files")
    if status:
        await expect(table).to_have_count(0)
        await shown.page.clock.fast_forward(27_000)
    await expect(table).to_be_visible()
    await expect(shown.page.get_by_text(said)).to_have_count(0)
    assert len(asked) == 1


async def test_a_page_that_asks_once_can_be_asked_again(tab: Open, site: Site) -> None:
    """A page that does not ask by itself offers to."""
    shown = await tab(site.key())
    shown.expected.add("503")
    away = {"error": {"message": "The database is away."}}
    await shown.page.route("**/v1/usage**", lambda route: route.fulfill(status=503, json=away))
    await shown.go("usage", "Usage")
    await shown.sees("The database is away.")
    await shown.page.unroute("**/v1/usage**")
    await shown.press("Try again")
    await shown.sees("By day, key and model")


async def test_a_reload_waits_for_the_server_and_keeps_the_key(tab: Open, site: Site) -> None:
    """Whoever reloads while the server is away is not asked for the key again, and gets the page when it is back."""
    shown = await tab(site.key())
    shown.expected.add("ERR_FAILED")
    await shown.go("files", "Files")
    await shown.page.clock.install()
    await shown.page.route("**/v1/**", lambda route: route.abort())
    await shown.page.reload()
    await shown.sees("The server cannot be reached.")
    await shown.page.unroute("**/v1/**")
    await shown.page.clock.fast_forward(3_000)
    await expect(shown.page.get_by_role("table", name="Files")).to_be_visible()


async def test_a_rate_does_not_end_a_batch_that_is_watched(tab: Open, site: Site) -> None:
    """A stream that is refused for a while is asked for again, then asked without a stream."""
    key = site.key()
    batch = site.batch(key, ["one"])
    site.finished(key, batch)
    shown = await tab(key)
    shown.expected.add("429")
    limited = {"error": {"message": "Too many calls."}}
    await shown.page.clock.install()
    await shown.page.route("**/progress", lambda route: route.fulfill(status=429, json=limited))
    await shown.go(f"batches/{batch}", "Batch")
    for _ in range(4):
        await shown.sees("Too many calls.")
        await shown.page.clock.fast_forward(3_000)
    await shown.page.unroute("**/progress")
    await shown.page.clock.fast_forward(3_000)
    await expect(shown.page.get_by_text("Too many calls.")).to_have_count(0)
    await expect(shown.page.get_by_role("table", name="Lines by backend")).to_be_visible()

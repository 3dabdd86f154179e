from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from playwright.async_api import expect

from batchmill.cli.keys import end_key
from dashboard.site import Site
from dashboard.tab import Tab

pytestmark = pytest.mark.asyncio(loop_scope="session")
Open = Callable[..., Coroutine[Any, Any, Tab]]


async def test_a_wrong_key_is_asked_for_again(tab: Open, site: Site) -> None:
    """A key that the server does not take, and a text that is none, are told as such."""
    shown = await tab()
    shown.expected.add("401")
    for text, said in (("not a key", "This is no key"), ("sk-bm-wrong", "The server does not take this key.")):
        await shown.page.get_by_label("API key").fill(text)
        await shown.page.keyboard.press("Enter")
        await shown.sees(said)
    await shown.enter(site.key())


async def test_a_key_lasts_as_long_as_the_tab_or_until_it_is_forgotten(tab: Open, site: Site) -> None:
    """A reload keeps the key, in the session's storage alone; "Forget key" removes it."""
    shown = await tab(site.key())
    await shown.page.reload()
    await expect(shown.page.get_by_role("navigation", name="Pages")).to_be_visible()
    kept = "JSON.stringify([Object.values(localStorage), document.cookie])"
    assert "sk-bm-" not in await shown.page.evaluate(kept)
    await shown.press("Forget key")
    await expect(shown.page.get_by_label("API key")).to_be_focused()
    assert await shown.page.evaluate("sessionStorage.length") == 0


async def test_a_key_that_ends_is_asked_for_again(tab: Open, site: Site) -> None:
    """A key that is revoked while a page is shown brings the question for one, and the page stays where it was."""
    made = site.new_key()
    shown = await tab(made.key)
    shown.expected.add("401")
    await shown.go("files", "Files")
    site.command(end_key, key_id=made.id)
    await shown.page.get_by_role("link", name="Batches").click()
    await shown.sees("The server does not take this key any more.")
    await shown.enter(site.key())
    await expect(shown.page.get_by_role("heading", level=1)).to_have_text("Batches")


async def test_a_key_that_only_reads_sees_nothing_to_change(tab: Open, site: Site) -> None:
    """Without write there is nothing to press that changes; without admin no keys, and usage without whose it was."""
    batch = site.batch(site.key(), ["x"])
    site.finished(site.key(), batch)
    shown = await tab(site.key(scopes=["read"]))
    await expect(shown.page.get_by_role("navigation").get_by_role("link")).to_have_text(
        ["Batches", "New batch", "Files", "Models and backends", "Usage", "Webhooks"]
    )
    await shown.go("keys", "Keys")
    await shown.sees("This page is for keys with the scope admin")
    await shown.go("usage", "Usage")
    await shown.sees("Which key it was is told to keys with the scope admin.")
    await expect(shown.page.get_by_role("columnheader", name="Key")).to_have_count(0)
    await shown.go("webhooks", "Webhooks")
    await shown.sees("There are no webhooks.")
    await expect(shown.page.get_by_role("button", name="New webhook…")).to_have_count(0)
    await shown.go("new", "New batch")
    await shown.sees("A new batch is for keys with the scope write")
    await shown.go("files", "Files")
    await expect(shown.page.get_by_role("button", name="Download").first).to_be_visible()
    await expect(shown.page.get_by_role("button", name="Delete…")).to_have_count(0)
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("1 of 1 line done")
    await expect(shown.page.get_by_role("button", name="Download output")).to_be_visible()

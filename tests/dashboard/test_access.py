"""Whether all can use it: by keyboard, with a screen reader, on a telephone, in light and in dark."""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from dashboard.site import Site, jsonl
from dashboard.tab import Tab, content

pytestmark = pytest.mark.asyncio(loop_scope="session")
Open = Callable[..., Coroutine[Any, Any, Tab]]
_GRAVE = {"serious", "critical"}


async def _found(shown: Tab, **options: Any) -> list[str]:  # noqa: ANN401 - axe's own options
    results = await Axe().run(shown.page, options={"resultTypes": ["violations"], **options})  # the rest is megabytes
    return [
        f"{each['id']} ({each['impact']}): {[node['html'] for node in each['nodes']][:3]}"
        for each in results.response["violations"]
        if each["impact"] in _GRAVE
    ]


async def _judged(shown: Tab) -> None:
    """Assert that axe finds nothing grave, in light or in dark, and that nothing is wider than a telephone."""
    for _ in range(100):  # toasts and transitions are over when two looks are alike
        if await shown.page.evaluate(
            "document.getAnimations().every((each) => each.effect.getTiming().iterations > 1)"
        ):
            break
    await shown.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert await _found(shown) == []
    await shown.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert await _found(shown, runOnly=["color-contrast"]) == []
    await shown.page.set_viewport_size({"width": 375, "height": 800})
    assert await shown.page.evaluate("document.documentElement.scrollWidth") <= 375
    await shown.page.set_viewport_size({"width": 1280, "height": 800})


async def test_every_page_is_for_all(tab: Open, site: Site) -> None:
    """Axe finds nothing serious on any page, and none scrolls sideways at 375 px."""
    key = site.key("access")
    metadata = {"a long name that goes on and on": "x" * 300}
    batch = site.batch(
        key, ["fine", "refuse by policy", "a" * 3000], metadata=metadata, filename=f"{'long' * 50}.jsonl"
    )
    site.finished(key, batch)
    hook = site.hook(key, batch)
    shown = await tab(bypass_csp=True)  # axe is code of ours that the policy knows nothing of
    await _judged(shown)
    await shown.enter(key)
    await shown.sees("1 failed")
    await _judged(shown)
    pages = (
        (f"batches/{batch}", "by policy"),
        ("new", "Choose a JSONL file"),
        ("files", "Output"),
        ("backends", "Well"),
        ("usage", "By day, key and model"),
        ("keys", "of access"),
        ("webhooks", "batch.expired"),
        (f"webhooks/{hook}", "batch.completed"),
    )
    for route, text in pages:
        await shown.go(route)
        await shown.sees(text)
        await _judged(shown)


async def test_what_opens_is_for_all(tab: Open, site: Site) -> None:
    """A dialog, a quote with errors, raw lines and a notice are as good as the pages that they open on."""
    key = site.key("access")
    file = site.client(key).files.create(file=("bad.jsonl", jsonl(["x"]) + b"{\n"), purpose="batch")
    shown = await tab(key, bypass_csp=True)
    await shown.go(f"new?file={file.id}", "New batch")
    await shown.sees("Input: bad.jsonl")
    await shown.press("Add a pair")
    await shown.press("Get a quote")
    await shown.sees("A batch of this input would fail.")
    await _judged(shown)
    await shown.go("keys", "Keys")
    await shown.press("New key…")
    await _judged(shown)
    await shown.page.keyboard.press("Escape")
    await expect(shown.page.get_by_role("dialog")).to_have_count(0)
    await expect(shown.page.get_by_role("button", name="New key…")).to_be_focused()


async def test_the_story_goes_by_keyboard_alone(tab: Open, site: Site, tmp_path: Path) -> None:
    """Key, upload, quote, batch and result are reached with Tab, Space and Enter; focus follows to each new page."""
    file = tmp_path / "keys.jsonl"
    file.write_bytes(jsonl(["by keyboard"]))
    shown = await tab()
    page = shown.page
    await page.keyboard.type(site.key())  # the field has the focus
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await _tab_to(shown, "link", "New batch", backwards=True)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1, name="New batch")).to_be_focused()
    await page.keyboard.press("Tab")
    async with page.expect_file_chooser() as chooser:
        await page.keyboard.press("Space")
    await (await chooser.value).set_files(file)
    await shown.sees("Input: keys.jsonl")
    await _tab_to(shown, "button", "Get a quote")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="1 line")).to_be_focused()
    await _tab_to(shown, "button", "Create batch", backwards=True)
    await page.keyboard.press("Space")
    await expect(page.get_by_role("heading", level=1, name="Batch")).to_be_focused()
    await shown.sees("You said: by keyboard")
    await _tab_to(shown, "button", "Download output")
    async with page.expect_download() as download:
        await page.keyboard.press("Enter")
    assert (await content(await download.value)).count(b"\n") == 1


async def _tab_to(shown: Tab, role: Any, name: str, *, backwards: bool = False) -> None:  # noqa: ANN401 - Playwright's roles
    target = shown.page.get_by_role(role, name=name, exact=True).first
    for _ in range(40):
        await shown.page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if await target.evaluate("(node) => node === document.activeElement"):
            return
    raise AssertionError(f"{name} is not reached by Tab")


async def test_colours_are_chosen(tab: Open, site: Site) -> None:
    """Dark stays dark after a reload, whatever the system says."""
    shown = await tab(site.key(), color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await shown.page.evaluate(ground)
    await shown.page.get_by_label("Colours").select_option("dark")
    assert await shown.page.evaluate(ground) != light
    await shown.page.reload()
    await expect(shown.page.get_by_label("Colours")).to_have_value("dark")
    assert await shown.page.evaluate(ground) != light


async def test_a_chart_has_words(tab: Open, site: Site) -> None:
    """What a chart shows is in its label, and as a table below it; what nobody watched is told to be a guess."""
    site.model.released.clear()
    key = site.key()
    batch = site.batch(key, ["one", "two", "hold on"])
    shown = await tab(key)
    await shown.page.clock.install(time=time.time() + 60)
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("Since this page was first opened, at ")
    chart = shown.page.get_by_role("img", name="Lines done")
    await expect(chart).to_be_visible()
    await shown.page.get_by_text("As a table").first.click()
    await expect(shown.page.get_by_role("table", name="Lines done")).to_be_visible()
    site.model.released.set()
    await shown.sees("3 of 3 lines done")


_PRESSED = """
async () => {
  const { draw, h } = await import("/dashboard/dom.js");
  window.clicks = 0;
  const click = () => (window.clicks += 1);
  window.again = (value) => draw(place, value, () => h("button", { "data-key": "b", onclick: click }, value));
  const place = document.querySelector("main").appendChild(h("div"));
  window.again("Old words");
}
"""


async def test_what_is_pressed_stays_until_it_is_let_go(tab: Open, site: Site) -> None:
    """A page that is drawn anew while a button is held down does not lose the click, nor the focus afterwards."""
    shown = await tab(site.key())
    await shown.page.evaluate(_PRESSED)
    await shown.page.get_by_role("button", name="Old words").hover()
    await shown.page.mouse.down()
    await shown.page.evaluate("window.again('New words')")
    await expect(shown.page.get_by_role("button", name="Old words")).to_be_visible()
    await shown.page.mouse.up()
    await expect(shown.page.get_by_role("button", name="New words")).to_be_focused()
    assert await shown.page.evaluate("window.clicks") == 1


async def test_a_list_is_where_it_was_when_one_comes_back(tab: Open, site: Site) -> None:
    """Back from a batch the list is as far down as it was left; a filter that was changed keeps the focus."""
    key = site.key("back")
    file = site.client(key).files.create(file=("one.jsonl", jsonl(["x"])), purpose="batch").id
    for _ in range(6):
        made = site.client(key).batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
        )
    site.finished(key, made.id)
    shown = await tab(key, viewport={"width": 1280, "height": 240})
    page = shown.page
    links = page.get_by_role("table").get_by_role("link")
    await expect(links).to_have_count(6)
    await page.evaluate("scrollTo(0, 250)")
    await links.nth(3).click()
    await shown.sees("1 of 1 line done")
    assert await page.evaluate("scrollY") == 0
    await page.go_back()
    await expect(links.nth(3)).to_be_in_viewport()
    await expect(links.first).not_to_be_in_viewport()
    state = page.get_by_label("State", exact=True)
    await state.focus()
    await page.keyboard.press("End")
    await page.wait_for_url("**status=cancelled")
    await shown.sees("No batch is in this state.")
    await expect(page.get_by_label("State", exact=True)).to_be_focused()


async def test_a_tab_that_is_not_seen_holds_no_connection(tab: Open, site: Site) -> None:
    """A browser has six for all its tabs: a hidden one gives its stream back, and is up to date when it is seen."""
    site.model.released.clear()
    key = site.key()
    batch = site.batch(key, ["one", "hold on"])
    shown = await tab(key)
    shown.expected.add("ERR_ABORTED")
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("1 of 2 lines done")
    async with shown.page.expect_event("requestfailed", lambda request: request.url.endswith("/progress")):
        await shown.page.evaluate(_SEEN, "hidden")
    site.model.released.set()
    site.finished(key, batch)
    await shown.sees("1 of 2 lines done")
    await shown.page.evaluate(_SEEN, "visible")
    await shown.sees("2 of 2 lines done")


_SEEN = """
(state) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => state === "hidden" });
  document.dispatchEvent(new Event("visibilitychange"));
}
"""

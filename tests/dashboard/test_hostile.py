"""Data that wants to be code: in every field that the dashboard shows, it stays text."""

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Route, expect

from dashboard.site import Site, jsonl
from dashboard.tab import Tab

pytestmark = pytest.mark.asyncio(loop_scope="session")
Open = Callable[..., Coroutine[Any, Any, Tab]]

_RUN = "window.hacked=1;alert(1)"
HOSTILE = (
    f"<script>{_RUN}</script>",
    f'"><img src=x onerror="{_RUN}">',
    f"<svg/onload={_RUN}>",
    f"javascript:{_RUN}//",
    f"</textarea></title></style></script><iframe srcdoc='<script>{_RUN}</script>'>",
    f"' autofocus onfocus='{_RUN}",
    "${alert(1)} {{constructor.constructor('alert(1)')()}}",
    "\u202egnp.exe\u2066 \u200f right to left",
    "评论 <b>粗体</b> &amp; &lt;i&gt;",
    "long" * 100,
)


async def test_no_data_becomes_code(tab: Open, site: Site, tmp_path: Path) -> None:
    """Scripts, handlers, links, marks of direction and long words, in each displayed field: nothing runs or breaks."""
    all_of_it = " ".join(HOSTILE[:-1])
    key = site.key('<img src=x onerror="window.hacked=1">')
    metadata = {f"{number} {text}"[:64]: text for number, text in enumerate(HOSTILE)}
    lines = [
        {
            "custom_id": text,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "<b>bold</b>", "messages": [{"role": "user", "content": f"{asked}{text} {number}"}]},
        }
        for number, text in enumerate(HOSTILE)
        for asked in ("",)
    ]
    refused = [
        {
            **line,
            "custom_id": f"{line['custom_id']} again",
            "body": {"model": "<b>bold</b>", "messages": [{"role": "user", "content": f"refuse {line['custom_id']}"}]},
        }
        for line in lines
    ]
    content = "".join(json.dumps(line) + "\n" for line in [*lines, *refused]).encode()
    client = site.client(key)
    file = client.files.create(file=(f"{HOSTILE[1][:100]}.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    ).id
    assert site.finished(key, batch).request_counts.failed == len(HOSTILE)
    wrong = tmp_path / f"{HOSTILE[4].replace('/', '')[:60]}.jsonl"
    wrong.write_bytes(
        jsonl([all_of_it], model=HOSTILE[0]) + json.dumps({"custom_id": HOSTILE[1], HOSTILE[2]: 1}).encode()
    )
    shown = await tab(key)
    await _harmless(shown, HOSTILE[1])
    await shown.go(f"batches/{batch}", "Batch")
    await shown.page.get_by_label("Show").select_option("failed")
    await expect(shown.page.get_by_role("article")).to_have_count(len(HOSTILE))
    for text in HOSTILE[:4]:
        await expect(shown.page.get_by_role("article").filter(has_text=text).first).to_be_visible()
    for raw in await shown.page.get_by_text("Raw JSON").all():
        await raw.click()
    await _harmless(shown, HOSTILE[0])
    await shown.go("files", "Files")
    await _harmless(shown, "onerror")
    await shown.go("backends", "Models and backends")
    await _harmless(shown, "<b>bold</b>")
    await shown.go("usage", "Usage")
    await _harmless(shown, "<b>bold</b>")
    await shown.go("keys", "Keys")
    await shown.press("New key…")
    await shown.page.get_by_role("dialog").get_by_label("Name").fill(HOSTILE[2])
    await shown.press("Make the key")
    await shown.press("I have kept it")
    await _harmless(shown, HOSTILE[2])
    await shown.go("new", "New batch")
    await shown.page.locator("input[type=file]").set_input_files(wrong)
    await shown.sees("Input: ")
    await shown.press("Get a quote")
    await _harmless(shown, "would fail")
    shown.expected.add("404")
    for address in ("<img src=x onerror=alert(1)>", "%zz"):
        await shown.page.goto(f"{site.server.url}/#/batches/{address}")
        await _harmless(shown, "No such batch")


async def _harmless(shown: Tab, text: str) -> None:
    """Wait until the text is there as text, and assert that nothing has run, and nothing is too wide."""
    await shown.sees(text)
    assert await shown.page.evaluate("window.hacked") is None
    assert await shown.page.locator("main :is(script, iframe, img, b, object, embed)").count() == 0
    assert await shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_fault_of_the_server_is_text(tab: Open, site: Site) -> None:
    """An error's message and a backend's reason are shown as they are, whatever they hold."""
    backend = {
        "object": "backend",
        "id": HOSTILE[0],
        "well": False,
        "reason": HOSTILE[1],
        "since": 1,
        "window": None,
        "in_flight": 0,
        "workers": 1,
        "draining": True,
        "models": [HOSTILE[2]],
    }
    shown = await tab(site.key())
    shown.expected.add("500")
    await shown.page.route("**/v1/backends", lambda route: route.fulfill(json={"object": "list", "data": [backend]}))
    await shown.go("backends", "Models and backends")
    for text in HOSTILE[:3]:
        await _harmless(shown, text)
    hook = {"object": "webhook", "id": HOSTILE[0], "url": HOSTILE[1], "events": [HOSTILE[2]], "batch_id": HOSTILE[3]}
    page = {"object": "list", "has_more": True, "last_id": HOSTILE[0]}
    sent = {"id": HOSTILE[0], "event": HOSTILE[1], "batch_id": HOSTILE[2], "status": HOSTILE[3], "attempts": 1}
    sent |= {"last_status_code": HOSTILE[4], "last_error": HOSTILE[5], "created_at": 1, "next_at": None}
    await shown.page.route(
        "**/v1/webhooks?*", lambda route: route.fulfill(json=page | {"data": [hook | {"created_at": 1}]})
    )
    await shown.page.route("**/deliveries?*", lambda route: route.fulfill(json=page | {"data": [sent]}))
    await shown.go("webhooks", "Webhooks")
    for text in HOSTILE[1:3]:
        await _harmless(shown, text)
    await shown.page.get_by_role("link", name="Log").click()
    for text in (HOSTILE[1], *HOSTILE[3:6]):
        await _harmless(shown, text)
    await shown.page.route(
        "**/v1/files?*", lambda route: route.fulfill(status=500, json={"error": {"message": HOSTILE[0]}})
    )
    await shown.go("files", "Files")
    await _harmless(shown, HOSTILE[0])


async def test_what_a_batch_says_of_itself_is_text(tab: Open, site: Site) -> None:
    """Why it waits, its causes of failure with a whole message, and its backends."""
    key = site.key()
    batch = site.batch(key, ["x"])
    site.finished(key, batch)
    group = {"id": HOSTILE[0], "status": HOSTILE[1], "code": HOSTILE[2], "message": HOSTILE[3], "example": HOSTILE[4]}
    share = {"backend": HOSTILE[6], "lines": 1, "prompt_tokens": 1, "completion_tokens": 1}
    told = {"waiting": {"reason": HOSTILE[5], "since": 1}, "backends": [share]}
    told |= {"error_groups": [group | {"count": 1, "custom_ids": [HOSTILE[0]]}]}

    async def changed(route: Route) -> None:
        answer = await route.fetch(headers=route.request.headers | {"accept": "application/json"})
        await route.fulfill(content_type="text/event-stream", body=_event(await answer.json() | told))

    shown = await tab(key)
    await shown.page.route("**/progress", changed)
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("Such as: ")
    for text in HOSTILE[:7]:
        await _harmless(shown, text)


def _event(value: object) -> str:
    return f"event: progress\ndata: {json.dumps(value)}\n\n"

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Route, expect

from acceptance.serving import until
from batchmill.cli.orgs import set_org
from dashboard.site import Site, jsonl
from dashboard.tab import Tab

pytestmark = pytest.mark.asyncio(loop_scope="session")
Open = Callable[..., Coroutine[Any, Any, Tab]]


async def test_from_a_key_to_a_download(tab: Open, site: Site, tmp_path: Path) -> None:
    """Who has a key and a file uploads it, has it quoted, creates the batch, watches it, reads it and takes it home."""
    prompts = ["hello", "你好，世界", *(f"prompt {i}" for i in range(40))]
    file = tmp_path / "story.jsonl"
    file.write_bytes(jsonl(prompts))
    shown = await tab()
    await shown.enter(site.key())
    await shown.page.get_by_role("link", name="New batch").first.click()
    await shown.page.locator("input[type=file]").set_input_files(file)
    await shown.sees("Input: story.jsonl")
    await shown.press("Add a pair")
    await shown.page.get_by_label("Name 1").fill("team")
    await shown.page.get_by_label("Value 1").fill("评测组")
    await shown.page.get_by_label("Lines to try").fill("2")
    await shown.press("Get a quote")
    await shown.sees("42 lines")
    await shown.sees("2 of 2 lines tried, 0 failed.")
    await shown.press("Create batch")
    await shown.sees("Download output")
    await shown.sees("42 of 42 lines done")
    await shown.sees("team: 评测组")
    await shown.sees("You said: 你好，世界")
    line = shown.page.get_by_role("article").filter(has_text="line-2").first
    await expect(line.get_by_text("你好，世界")).to_have_count(2)
    await line.get_by_text("Raw JSON").click()
    await expect(line.locator("pre").first).to_contain_text(jsonl(prompts).decode().splitlines()[1])
    output = await shown.saved("Download output")
    assert [json.loads(text)["custom_id"] for text in output.splitlines()] == [f"line-{i}" for i in range(1, 43)]
    await shown.page.get_by_role("link", name="Batches").first.click()
    await shown.sees("42 of 42 lines")


async def test_a_running_batch_is_seen_as_it_runs(tab: Open, site: Site) -> None:
    """Lines that are done show while others wait, without a reload; paused, it says so and goes on when resumed."""
    site.model.released.clear()
    key = site.key()
    batch = site.batch(key, ["first", "second", "hold on"])
    shown = await tab(key)
    await shown.go(f"batches/{batch}", "Batch")
    await shown.sees("2 of 3 lines done")
    await shown.sees("You said: second")
    await shown.page.get_by_text("Raw JSON").first.click()
    await shown.press("Pause")
    await shown.sees("Paused since")
    await shown.press("Resume")
    await expect(shown.page.get_by_text("Paused since")).to_have_count(0)
    site.model.released.set()
    await shown.sees("3 of 3 lines done")
    await shown.sees("Completed")
    await expect(shown.page.get_by_role("article")).to_have_count(3)
    await expect(shown.page.locator("details[open] pre")).to_have_count(2)  # what was opened before stays so
    asked = [url for url in shown.urls if "/results?" in url]
    assert len([url for url in asked if "after=" not in url]) == 1  # the others go on from where it was


async def test_a_batch_is_steered(tab: Open, site: Site) -> None:
    """Window and priority are changed in place, and what is refused can be mended; cancelling asks, and no is no."""
    site.model.released.clear()
    key = site.key()
    batch = site.batch(key, ["first", "hold on", *["more"] * 300])
    shown = await tab(key)
    shown.expected.add("400")
    await shown.go(f"batches/{batch}", "Batch")
    await shown.press("Window…")
    await shown.page.get_by_role("dialog").get_by_label("Completion window").fill("soon")
    await shown.page.keyboard.press("Enter")
    await expect(shown.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("'completion_window' must be")
    await shown.page.get_by_role("dialog").get_by_label("Completion window").fill("48h")
    await shown.page.keyboard.press("Enter")
    await shown.sees("48h")
    await expect(shown.page.get_by_role("dialog")).to_have_count(0)
    await shown.press("Priority…")
    await shown.page.get_by_role("dialog").get_by_label("Priority").fill("7")
    await shown.press("Change")
    await expect(shown.page.locator(".facts")).to_contain_text("Priority7")
    await shown.press("Cancel…")
    await shown.press("Keep it running")
    await shown.press("Cancel…")
    await shown.page.go_back()
    await shown.sees("Find on this page")
    await expect(shown.page.get_by_role("dialog")).to_have_count(0)
    await shown.page.go_forward()
    assert site.client(key).batches.retrieve(batch).cancelling_at is None
    await shown.press("Cancel…")
    await shown.press("Cancel the batch")
    site.model.released.set()
    await expect(shown.page.locator(".mark").filter(has_text="Cancelled").first).to_be_visible(timeout=30_000)


async def test_failed_lines_are_retried(tab: Open, site: Site) -> None:
    """Failures stand by cause; one cause is retried in a new batch, and both are read as one."""
    key = site.key()
    site.model.strict = True
    batch = site.batch(
        key, ["fine", "refuse the context of 5 tokens is too long", "refuse by policy", "refuse by policy"]
    )
    site.finished(key, batch)
    shown = await tab(key)
    await shown.go(f"batches/{batch}", "Batch")
    row = shown.page.get_by_role("row").filter(has_text="by policy")
    await expect(row).to_contain_text("2")
    await row.get_by_role("button", name="Show lines").click()
    await expect(shown.page.get_by_role("article")).to_have_count(2)
    site.model.strict = False
    await row.get_by_role("button", name="Retry").click()
    await shown.sees("This batch retries failed lines of")
    await shown.sees("2 of 2 lines done")
    await shown.sees("Completed")
    site.model.strict = True
    await shown.go(f"batches/{batch}", "Batch")
    child = shown.page.get_by_role("table", name="Retries of this batch").get_by_role("row").last
    await expect(child).to_contain_text("2 of 2 lines done")
    assert any(url.endswith(f"?parent_id={batch}&limit=100") for url in shown.urls)
    await shown.page.get_by_label("With what retries made of failed lines").check()
    await expect(shown.page.get_by_role("article").filter(has_text="Succeeded")).to_have_count(3)
    await expect(shown.page.get_by_role("article").filter(has_text="Failed")).to_have_count(1)


async def test_an_input_that_is_wrong_is_shown_line_by_line(tab: Open, site: Site, tmp_path: Path) -> None:
    """The quote names each bad line by its number, and so does the batch that fails over it."""
    file = tmp_path / "wrong.jsonl"
    file.write_bytes(jsonl(["fine"]) + b"no JSON\n" + jsonl(["again"]))
    shown = await tab(site.key())
    await shown.go("new", "New batch")
    await shown.page.locator("input[type=file]").set_input_files(file)
    await shown.sees("Input: wrong.jsonl")
    await shown.press("Get a quote")
    await shown.sees("A batch of this input would fail.")
    bad = shown.page.get_by_role("row").filter(has=shown.page.get_by_role("cell", name="2", exact=True))
    await expect(bad.first).to_be_visible()
    await shown.page.get_by_label("Completion window").fill("25h")  # of another order the quote says nothing
    await expect(shown.page.get_by_text("A batch of this input would fail.")).to_have_count(0)
    await shown.press("Create batch")
    await shown.sees("Why it failed: 2 errors")
    await shown.page.get_by_role("link", name="Batches").first.click()
    await shown.sees("2 errors in the input")


async def test_files_are_taken_used_and_deleted(tab: Open, site: Site) -> None:
    """A file is saved as it is; deleting asks first; an input is used again."""
    key = site.key("files")
    content = jsonl(["only"])
    site.client(key).files.create(file=("mine.jsonl", content), purpose="batch")
    shown = await tab(key)
    await shown.go("files", "Files")
    assert await shown.saved("Download") == content
    await shown.page.get_by_role("link", name="Use").click()
    await shown.sees("Input: mine.jsonl")
    await shown.go("files", "Files")
    await shown.press("Delete…")
    await shown.press("Keep it")
    await shown.sees("mine.jsonl")
    await shown.press("Delete…")
    await shown.press("Delete")
    await shown.sees("There are no files.")


async def test_batches_are_found(tab: Open, site: Site) -> None:
    """The list is filtered by state and by what stands in the metadata."""
    key = site.key("find")
    for name in ("apple", "pear"):
        site.finished(key, site.batch(key, ["x"], metadata={"fruit": name}))
    shown = await tab(key)
    await shown.sees("fruit: apple")
    await shown.page.get_by_label("Find on this page").fill("PEAR")
    await expect(shown.page.get_by_text("fruit: apple")).to_have_count(0)
    await shown.sees("fruit: pear")
    await shown.page.get_by_label("State", exact=True).select_option("failed")
    await shown.sees("No batch is in this state.")
    await shown.page.get_by_label("State", exact=True).select_option("completed")
    await shown.sees("fruit: apple")


async def test_keys_are_made_rotated_and_revoked(tab: Open, site: Site) -> None:
    """A new key is shown once; a key is rotated and revoked, both after a question."""
    shown = await tab(site.key("keys"))
    await shown.go("keys", "Keys")
    await shown.press("New key…")
    await shown.page.get_by_role("dialog").get_by_label("Name").fill("nightly job")
    await shown.press("Make the key")
    made = await shown.page.get_by_label("Key", exact=True).input_value()
    assert site.client(made).models.list().data
    await shown.page.keyboard.press("Escape")  # what is shown once does not go by accident
    await shown.press("I have kept it")
    row = shown.page.get_by_role("row").filter(has_text="nightly job")
    await expect(row).to_contain_text("Good")
    await expect(shown.page.get_by_role("row").filter(has_text="in use here")).to_have_count(1)
    assert made not in await shown.page.content()
    await row.get_by_role("button", name="Rotate…").click()
    await shown.press("Rotate")
    await shown.press("I have kept it")
    await expect(row).to_have_count(2)
    await row.last.get_by_role("button", name="Revoke…").click()
    await shown.press("Revoke")
    await expect(row.filter(has_text="Revoked")).to_have_count(1)


async def test_every_list_has_all_its_pages(tab: Open, site: Site) -> None:
    """What is older than the newest fifty is a page further on, and the newest are a page back."""
    key = site.key("many")
    shown = await tab(key)
    page = {"object": "list", "has_more": True, "last_id": "last"}
    one = {"batches": {"request_counts": {"completed": 0, "failed": 0, "total": 0}}, "files": {"filename": "a"}}
    one |= {"keys": {"scopes": []}, "webhooks": {"events": [], "url": "b"}, "webhooks/w/deliveries": {"attempts": 1}}
    item = {"id": "an-id", "status": "failed", "created_at": 1, "bytes": 1, "batch_id": "b"}

    async def answer(route: Route) -> None:
        await route.fulfill(json=page | {"data": [item | one[_asked_for(route.request.url)]]})

    await shown.page.route(lambda url: _asked_for(url) in one, answer)
    for name in one:
        address = name.removesuffix("/deliveries")
        await shown.go(address)
        await shown.press("Older")
        await expect(shown.page).to_have_url(re.compile(rf"#/{address}\?after=last$"))
        await shown.page.get_by_role("link", name="Newest").click()
        await expect(shown.page).to_have_url(re.compile(rf"#/{address}$"))
        assert any(f"/v1/{name}?after=last" in url for url in shown.urls)


async def test_usage_and_backends_are_shown(tab: Open, site: Site) -> None:
    """What was used stands by day, key and model, of all pages; each backend with its health and its models."""

    async def one_a_page(route: Route) -> None:
        await route.continue_(url=f"{route.request.url}&limit=1")

    key, other = site.key("usage"), site.key("usage", ["read", "write"])
    site.finished(key, site.batch(key, ["one", "two"]))
    site.finished(other, site.batch(other, ["three"]))
    site.command(set_org, name="usage", limits={"tokens_per_day": "1000000"})
    shown = await tab(key, locale="de-DE", timezone_id="Asia/Shanghai")
    await shown.page.route("**/v1/usage?*", one_a_page)
    await shown.sees("Times: Asia/Shanghai, UTC+8")
    await shown.go("usage", "Usage")
    await shown.sees("Tokens a day")
    await expect(shown.page.get_by_role("cell", name="1M", exact=True)).to_be_visible()  # as the words around it
    rows = shown.page.get_by_role("row").filter(has_text="plain")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("of usage")
    await expect(rows.first.get_by_role("cell").nth(3)).to_have_text("2")
    await shown.page.get_by_label("To", exact=True).fill("2026-01-31")
    await shown.page.get_by_label("From", exact=True).fill("2026-01-01")
    await shown.press("Show these days")
    await shown.sees("Nothing was used in these days.")
    await shown.go("backends", "Models and backends")
    await expect(shown.page.get_by_role("row").filter(has_text="127.0.0.1").first).to_contain_text("Well")


async def test_webhooks_are_added_told_and_removed(tab: Open, site: Site) -> None:
    """What is refused can be mended, the secret is shown once, the log tells what was sent, and sends it again."""
    key = site.key("hooks")
    batch = site.batch(key, ["x"])
    site.finished(key, batch)
    shown = await tab(key)
    shown.expected.add("400")
    await shown.go("webhooks", "Webhooks")
    await shown.sees("There are no webhooks.")
    await shown.press("New webhook…")
    dialog = shown.page.get_by_role("dialog")
    await dialog.get_by_label("Address").fill("ftp://127.0.0.1/hook")
    await dialog.get_by_label("One batch alone").fill(batch)
    await shown.press("Add the webhook")
    await expect(dialog.get_by_role("alert")).to_contain_text("'url' must be")
    await dialog.get_by_label("Address").fill(f"{site.model.url}/hook/mine")
    await dialog.get_by_label("batch.cancelled").uncheck()
    await shown.press("Add the webhook")
    secret = await shown.page.get_by_label("Secret", exact=True).input_value()
    assert secret.startswith("whsec_")
    await shown.press("I have kept it")
    row = shown.page.get_by_role("row").filter(has_text="/hook/mine")
    await expect(row).to_contain_text("batch.expired")
    await expect(row).not_to_contain_text("batch.cancelled")
    assert secret not in await shown.page.content()
    await row.get_by_role("link", name="Log").click()
    sent = shown.page.get_by_role("row").filter(has_text="batch.completed")
    await expect(sent).to_contain_text("Delivered")
    await shown.press("Send again")
    await asyncio.to_thread(until, lambda: len(site.model.heard["mine"]) > 1, 10)
    assert len(set(site.model.heard["mine"])) == 1  # the same event, under the same id
    await shown.sees("It is sent once more")
    await shown.page.get_by_role("link", name="All webhooks").click()
    await shown.press("Remove…")
    await shown.press("Remove")
    await shown.sees("There are no webhooks.")


async def test_a_batch_is_created_once(tab: Open, site: Site) -> None:
    """Who presses again because the answer was lost gets the batch that was made, and no second one."""
    key = site.key("once")
    file = site.client(key).files.create(file=("one.jsonl", jsonl(["x"])), purpose="batch").id
    shown = await tab(key)
    shown.expected.add("ERR_FAILED")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await shown.page.route("**/v1/batches", lose)
    await shown.go(f"new?file={file}", "New batch")
    await shown.sees("Input: one.jsonl")
    await shown.press("Create batch")
    await shown.sees("The server cannot be reached.")
    await shown.page.unroute("**/v1/batches")
    await shown.press("Create batch")
    await shown.sees("1 of 1 line done")
    assert len(site.client(key).batches.list().data) == 1


async def test_an_upload_is_dropped_and_aborted(tab: Open, site: Site) -> None:
    """A file that is dropped is uploaded; while it is on its way it can be aborted, and nothing is chosen then."""
    held: list[Route] = []

    async def hold(route: Route) -> None:
        held.append(route)

    shown = await tab(site.key())
    await shown.page.route("**/v1/files", hold)
    await shown.go("new", "New batch")
    dropped = await shown.page.evaluate_handle(_DROPPED, jsonl(["dropped"]).decode())
    await shown.page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
    await shown.sees("Uploading dropped.jsonl")
    await shown.press("Abort")
    await shown.sees("The upload was aborted.")
    await shown.press("Create batch")
    await shown.sees("Upload or choose an input file first.")
    await shown.page.unroute("**/v1/files")
    await shown.page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
    await shown.sees("Input: dropped.jsonl")
    assert len(held) == 1


async def test_a_batch_that_will_miss_its_deadline_is_marked(tab: Open, site: Site) -> None:
    """A forecast beyond the deadline stands in the list as a risk, in words."""
    site.model.released.clear()
    key = site.key("late")
    site.batch(key, ["hold on"])

    async def late(route: Route) -> None:
        answer = await (await route.fetch()).json()
        for batch in answer["data"]:
            batch["progress"] = {"misses_by": 720, "eta": batch["expires_at"] + 720}
        await route.fulfill(json=answer)

    shown = await tab()
    await shown.page.route("**/v1/batches?*", late)
    await shown.enter(key)
    await shown.sees("At risk")
    await shown.sees("misses the deadline by 12 min")
    site.model.released.set()


def _asked_for(url: str) -> str:
    return urlsplit(url).path.removeprefix("/v1/")


_DROPPED = """
(text) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([text], "dropped.jsonl"));
  return dropped;
}
"""

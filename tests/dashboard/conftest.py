"""A server, a browser and tabs for the dashboard's tests: each of the first two once a session."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect

from acceptance.serving import processes_in
from dashboard.model import serving
from dashboard.site import Site
from dashboard.tab import CHROMIUM, SECONDS, Tab


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run `batchmill serve` before a model of the tests, for all of them."""
    folder = tmp_path_factory.mktemp("dashboard")
    with serving("plain", "<b>bold</b>") as model, processes_in(folder) as processes:
        settings = folder / "batchmill.toml"
        settings.write_text('webhook_urls = "any"\n')  # the model is told, too, and is no public address
        server = processes.ready("--limits", "open", "--backend", model.url, "--settings", settings)
        yield Site(processes=processes, server=server, model=model)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Start the system's Chromium, without a window."""
    async with async_playwright() as playwright:
        expect.set_options(timeout=SECONDS)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser, site: Site) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Tab]]]:
    """Open tabs; at the end, each must have kept to what holds for every page."""
    opened: list[Tab] = []
    async with AsyncExitStack() as stack:

        async def open_tab(key: str | None = None, **context: object) -> Tab:
            opened.append(await stack.enter_async_context(Tab.opened(browser, site, key=key, **context)))
            return opened[-1]

        yield open_tab
        for shown in opened:
            assert await shown.complaints() == []

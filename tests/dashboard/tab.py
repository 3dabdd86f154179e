"""A tab of the browser that shows the dashboard, and what must hold for every page of it."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Dialog, Download, Page, Request, expect

from dashboard.site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "/usr/bin/chromium"
SECONDS = 15_000.0  # in milliseconds: a thing may take so long to appear, on a busy machine
_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@dataclass(kw_only=True)  # no slots: Playwright keeps what it needs of a listener on its owner
class Tab:
    """A page, and what it did: `console` errors, requests by their URLs, and dialogs that scripts opened."""

    page: Page
    site: Site
    expected: set[str] = field(default_factory=set)  # parts of console errors that a test provokes
    console: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def opened(cls, browser: Browser, site: Site, *, key: str | None, **context: Any) -> AsyncIterator[Self]:  # noqa: ANN401 - options of a context
        """Open a tab, with the key in place if one is given."""
        async with await browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | context)) as own:
            own.set_default_timeout(SECONDS)
            tab = await cls._watched(own, site)
            await tab.page.goto(site.server.url)
            if key is not None:
                await tab.enter(key)
            yield tab

    @classmethod
    async def _watched(cls, context: BrowserContext, site: Site) -> Self:
        await context.add_init_script(_VIOLATIONS)
        tab = cls(page=await context.new_page(), site=site)
        context.on("request", tab._asked)
        tab.page.on("console", tab._said)
        tab.page.on("pageerror", lambda error: tab.console.append(str(error)))
        tab.page.on("dialog", tab._interrupted)
        return tab

    async def enter(self, key: str) -> None:
        """Enter a key."""
        await self.page.get_by_label("API key").fill(key)
        await self.page.keyboard.press("Enter")
        await expect(self.page.get_by_role("navigation", name="Pages")).to_be_visible()

    async def go(self, route: str, heading: str | None = None) -> None:
        """Open a page by its address, and wait until it is there and asks for nothing more."""
        await self.page.goto(f"{self.site.server.url}/#/{route}")
        if heading is not None:
            await expect(self.page.get_by_role("heading", level=1)).to_contain_text(heading)
        await expect(self.page.locator(".page > *").first).to_be_attached()

    async def sees(self, text: str) -> None:
        """Wait until the text can be seen."""
        await expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible()

    async def press(self, name: str) -> None:
        """Press a button."""
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def saved(self, name: str) -> bytes:
        """Press a button that saves a file, and return the file."""
        async with self.page.expect_download() as download:
            await self.press(name)
        return await content(await download.value)

    async def complaints(self) -> list[object]:
        """Return whatever did not hold that must hold for every page; nothing, if all is well."""
        own = urlsplit(self.site.server.url).netloc
        fetched = [url for url in self.urls if not url.startswith(("blob:", "data:"))]
        return [
            *(said for said in self.console if not any(part in said for part in self.expected)),
            *self.dialogs,
            *await self.page.evaluate("window.violations"),
            *(url for url in fetched if urlsplit(url).netloc != own),
            *(url for url in [*self.urls, self.page.url] if "sk-bm-" in url),
        ]

    def _asked(self, request: Request) -> None:
        self.urls.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.console.append(f"{message.text} {message.location}")

    async def _interrupted(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()


async def content(download: Download) -> bytes:
    """Return what was saved."""
    return await asyncio.to_thread((await download.path()).read_bytes)

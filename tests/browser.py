"""A real browser for the tests of pages: headless Chromium, what a page asked of the network, and its complaints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium"),
]

LAPTOP, PHONE = (1280, 800), (390, 844)


class Opened:
    """A page that was opened from the disk, and everything it asked of the network or said to the console."""

    def __init__(
        self,
        browser: Any,
        path: Path,
        *,
        size: tuple[int, int] = LAPTOP,
        scheme: str = "light",
        ready: str = "body",
    ) -> None:
        """Opens the file and waits for the selector `ready`; scheme is light or dark."""
        width, height = size
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(ready)

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

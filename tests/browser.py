"""The real Chromium of this machine, and pictures of its pages for people to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NO_CHROMIUM = "chromium is not installed: `make tools` as root installs it"
KEPT = Path(
    os.environ.get("GRADGUARD_ARTEFACTS") or Path(__file__).resolve().parents[1] / "build/screenshots"
)
DESK = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def keep(page: Any, name: str) -> None:
    """A picture of the whole page in build/screenshots, to look at.

    Chromium refuses a capture now and then, the first after its start on a busy machine, and takes the same
    picture when it is asked again (MarketSquare/robotframework-browser#5237).
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name}.png"
    try:
        page.screenshot(path=path, full_page=True)
    except Exception as error:
        if "Unable to capture screenshot" not in str(error):
            raise
        page.wait_for_timeout(500)
        page.screenshot(path=path, full_page=True)

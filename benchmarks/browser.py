"""A Chromium without a window, for what looks at the page of a report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: ``NMCOMPILE_BROWSER`` names a Chromium that must be there.
_NAMED = os.environ.get("NMCOMPILE_BROWSER")
CHROMIUM = shutil.which(_NAMED or "chromium")
#: Whether there is none and none is asked for, so that a test may be left out.
ABSENT = CHROMIUM is None and _NAMED is None


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; it is closed at the end.

    Raises:
        ImportError: playwright is not installed.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()

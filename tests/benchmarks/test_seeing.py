"""The benchmark of what people wait for finds what it measures."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import seeing
from benchmarks.browser import ABSENT

needs_browser = pytest.mark.skipif(ABSENT, reason="no Chromium is installed")


@needs_browser
def test_a_page_opens_and_every_click_is_timed() -> None:
    pytest.importorskip("playwright.sync_api")
    rows = {row.metric: row for row in seeing.page(layers=1, rounds=1)}
    assert set(rows) == {"kB", "ready (ms)", "unfold all (ms)", "select a module (ms)"}
    assert all(row.p50 > 0 for row in rows.values())


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        seeing.wall("policy", "check", "no such file")

"""The picture of a result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nmcompile import NMError
from nmcompile.tuning.plot import draw
from tests.tuning.samples import tuned

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("target", [None, "h100"])
def test_the_ending_of_the_name_is_the_format(tmp_path: Path, target: str | None) -> None:
    png, svg = (draw(tuned(target), tmp_path / f"curve.{end}") for end in ("png", "svg"))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    with pytest.raises(NMError, match="nonsense"):
        draw(tuned(), tmp_path / "curve.nonsense")
    assert not (tmp_path / "curve.nonsense").exists()


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NMError, match=r"pip install 'nmcompile\[study\]'"):
        draw(tuned(), tmp_path / "curve.png")

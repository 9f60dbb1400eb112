"""Devices and the layout that their sparse tensor cores read."""

from __future__ import annotations

import pytest

from nmcompile.compressed.hardware import _CEILINGS, _cuda_target, target_of
from nmcompile.compressed.layouts import Layout

H200 = _CEILINGS["H200"]


@pytest.mark.parametrize(
    ("capability", "library", "layout"),
    [
        ((9, 0), 700, Layout.CUSPARSELT_SM90),
        ((8, 0), 700, Layout.CUSPARSELT_SM80),
        ((8, 9), 700, Layout.CUSPARSELT_SM80),
        ((8, 0), None, Layout.CUTLASS_SM80),
        ((9, 0), None, None),
        ((7, 5), 700, None),
        ((10, 0), 700, None),
    ],
)
def test_the_layout_of_a_gpu(
    capability: tuple[int, int], library: int | None, layout: Layout | None
) -> None:
    target = _cuda_target("A GPU", capability, library, None)
    assert target.layout is layout
    assert bool(target.reason) == (layout is None)


def test_the_cpu_has_a_layout_and_nothing_to_predict_with() -> None:
    assert target_of("cpu").layout is not None
    assert target_of("cpu").ceilings is None
    assert "mps" in target_of("mps").reason

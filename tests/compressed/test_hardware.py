"""Devices and the layout that their sparse tensor cores read."""

from __future__ import annotations

import pytest

from nmcompile.compressed.hardware import layout_of, layout_on
from nmcompile.compressed.layouts import Layout


@pytest.mark.parametrize(
    ("capability", "library", "layout"),
    [
        ((9, 0), 700, Layout.CUSPARSELT_SM90),
        ((8, 0), 700, Layout.CUSPARSELT_SM80),
        ((8, 6), 700, Layout.CUSPARSELT_SM80),
        ((8, 9), 700, Layout.CUSPARSELT),
        ((8, 9), None, Layout.CUTLASS_SM80),
        ((10, 0), 700, Layout.CUSPARSELT),
        ((12, 0), 700, Layout.CUSPARSELT),
        ((8, 0), None, Layout.CUTLASS_SM80),
        ((9, 0), None, None),
        ((7, 5), 700, None),
        ((10, 0), None, None),
        ((13, 0), 700, None),
    ],
)
def test_the_layout_of_a_gpu(
    capability: tuple[int, int], library: int | None, layout: Layout | None
) -> None:
    reads = layout_of("A GPU", capability, library)
    assert reads.layout is layout
    assert bool(reads.reason) == (layout is None)


def test_the_cpu_has_a_layout_and_other_devices_a_reason() -> None:
    assert layout_on("cpu").layout is not None
    assert layout_on("mps") == (None, "no sparse tensor core product on mps")

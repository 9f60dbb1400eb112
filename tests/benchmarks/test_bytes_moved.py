"""Fused compress kernels move fewer bytes than unfused ones, by Inductor's own count."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from benchmarks.bytes_moved import Kernel, kernels_of


def moved(kernels: list[Kernel]) -> int:
    """Bytes outside of products and attention."""
    return sum(k.bytes for k in kernels if k.kind != "product")


@pytest.mark.slow
@pytest.mark.parametrize(("network", "most"), [("llama", 1.30), ("gpt2", 1.45)])
def test_full_moves_little_more_than_dense_and_less_than_unfused(network: str, most: float) -> None:
    variants = ("dense", "full, unfused", "full")
    dense, unfused, fused = (kernels_of(network, variant, depth=1) for variant in variants)
    assert not any(k.kind == "compress" for k in dense)
    assert sum(k.kind == "compress" for k in unfused) >= 6
    assert moved(fused) < moved(unfused)
    assert moved(fused) <= most * moved(dense)

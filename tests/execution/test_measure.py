"""Measuring at compile time: what is timed, on real tensors, without touching the random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from nmcompile.compressed.layouts import Layout
from nmcompile.execution import measure
from nmcompile.execution.cost import Kind, Product, estimate
from nmcompile.execution.measure import Measured
from nmcompile.execution.targets import named
from nmcompile.masks.formats import Method

H100 = named("h100")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The results of what was timed; the clock is left out."""
    results: list[Any] = []

    def median(run: Callable[[], Any]) -> float:
        results.append(run())
        return float(len(results))

    caches = (measure._products, measure._compress, measure._copy)
    monkeypatch.setattr(measure, "_seconds", median)
    for cached in caches:
        cached.cache_clear()
    yield results
    for cached in caches:
        cached.cache_clear()


def product(left: bool = True, **keys: Any) -> Product:
    return Product(**{"site": 0, "rows": 64, "columns": 32, "k": 96, "left": left, **keys})


def kind(method: Method) -> Kind:
    return Kind(method, Layout.CUSPARSELT_SM90, device="cpu")


@pytest.mark.parametrize("left", [True, False])
def test_both_products_are_those_of_the_site(left: bool, timed: list[Any]) -> None:
    state = torch.get_rng_state()
    clock = Measured(H100, "cpu")
    with FakeTensorMode():  # as in the passes
        times = (
            clock.dense(product(left), kind(Method.MSE)),
            clock.sparse(product(left), kind(Method.MSE)),
        )
    assert times == (1.0, 2.0)
    dense, sparse = timed
    assert not any(isinstance(t, FakeTensor) for t in timed)
    assert dense.shape == sparse.shape == ((64, 32) if left else (32, 64))
    # Half of each sum is missing: alike, not equal.
    correlation = torch.corrcoef(torch.stack([dense.flatten(), sparse.flatten()]).float())[0, 1]
    assert 0.6 < correlation < 0.999
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", [Method.MSE, Method.MVUE, Method.TRANSPOSABLE])
def test_the_compress_kernel_writes_every_orientation(method: Method, timed: list[Any]) -> None:
    with FakeTensorMode():
        assert Measured(H100, "cpu").compress(64, 96, [1, 0], kind(method)) == 1.0
    ((rows, columns),) = timed
    shape = Layout.CUSPARSELT_SM90.packed_shape
    assert rows.shape == shape(64, 96, torch.bfloat16)
    assert columns.shape == shape(96, 64, torch.bfloat16)


def test_a_unit_is_weighed_by_what_was_measured(timed: list[Any]) -> None:
    found = estimate([product()], kind(Method.MSE), Measured(H100, "cpu"))
    assert found.how == "measured"
    # In the order in which they are asked for: both products, then the compress kernel.
    assert (found.products[0].dense, found.products[0].product) == (1.0, 2.0)
    assert found.shared.compress == 3.0


def test_a_site_is_measured_once(timed: list[Any]) -> None:
    clock = Measured(H100, "cpu")
    for _ in range(2):
        clock.dense(product(), kind(Method.MSE))
        clock.compress(64, 96, [1], kind(Method.MSE))
    assert len(timed) == 3


def test_a_gpu_without_figures_is_asked_for_its_bandwidth(
    timed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_COPIED", 1024)
    clock = Measured(H100.model_copy(update={"figures": None}), "cpu")
    assert clock.bandwidth == 2 * 1024
    assert timed[0].shape == (1024,)


def test_where_the_library_packs_its_own_compression_is_timed(timed: list[Any]) -> None:
    opaque = Kind(Method.MVUE, Layout.CUSPARSELT, device="cpu")
    shared = estimate([product()], opaque, Measured(H100, "cpu")).shared
    assert shared.compress == 3.0  # behind both products
    assert timed[2].shape == Layout.CUSPARSELT.packed_shape(64, 96, torch.bfloat16)

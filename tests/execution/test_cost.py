"""The arithmetic of the cost model: FLOPs, bytes, launches, padding, and what is shared."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from nmcompile.codegen.device import host
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import OVER_BYTES, Kind, Predicted, Product, UnitEstimate, estimate
from nmcompile.execution.targets import Figures
from nmcompile.masks.formats import Method
from tests.execution.gpus import H200

assert H200.figures is not None
FIGURES: Figures = H200.figures
BANDWIDTH, LAUNCH = FIGURES.bandwidth.value, FIGURES.launch.value
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def kind(method: Method = Method.MSE) -> Kind:
    return Kind(method, Layout.CUSPARSELT_SM90)


def predicted(*products: Product, method: Method = Method.MSE) -> UnitEstimate:
    return estimate(products, kind(method), Predicted(H200))


def cube(n: int = 8192, **keys: Any) -> Product:
    return Product(**{"site": 0, "rows": n, "columns": n, "k": n, **keys})


def test_a_large_product_is_bound_by_flops_and_a_thin_one_by_bytes() -> None:
    large = predicted(cube()).products[0]
    assert large.dense == pytest.approx(2 * 8192**3 / FIGURES.dense.value + LAUNCH)
    rate = FIGURES.dense.value * FIGURES.gain.value
    assert large.product == pytest.approx(2 * 8192**3 / rate + LAUNCH)
    thin = predicted(cube(rows=16))
    moved = 2 * (16 * 8192 + 8192 * 8192 + 16 * 8192)
    assert thin.weighed.dense == pytest.approx(moved / BANDWIDTH + LAUNCH)
    assert thin.weighed.speedup < 1


def test_compressing_costs_its_bytes_and_an_unknown_mask_a_pass_more() -> None:
    elements = 8192 * 8192
    mse, mvue, uniform = (predicted(cube(), method=m).shared for m in (Method.MSE, Method.MVUE,
                                                                       Method.UNIFORM))  # fmt: skip
    over = OVER_BYTES[Method.MSE, 1]
    assert mse.compress == pytest.approx(elements * (2 + 9 / 8) / BANDWIDTH * over + LAUNCH)
    assert mvue.compress == mse.compress == uniform.compress
    assert (mse.prune, mvue.prune) == (0, 0)
    a_pass = pytest.approx(4 * elements / BANDWIDTH + LAUNCH)
    assert uniform.prune == a_pass
    both = cube(), cube(site=1, along=0)
    assert predicted(*both, method=Method.TRANSPOSABLE).shared.prune == a_pass


def test_the_time_over_the_bytes_is_what_was_measured() -> None:
    with (RESULTS / "gpu_check_h100_80gb_hbm3.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "times byte floor"]
    measured = {(row["mode"], row["x"], row["config"]): float(row["p50"]) for row in rows}
    for (method, orientations), ratio in OVER_BYTES.items():
        words = ["[1, 0]"] if orientations == 2 else ["[1]", "[0]"]
        found = [measured["compress", "16384x14336", f"{method} dims {dims}"] for dims in words]
        if (method, orientations) == (Method.MVUE, 2):  # other tiles than in that section
            own = host.tile("both", "mvue")
            tile = f"{own.rows}x{own.columns}/{own.warps}"
            found = [measured["tiles", "16384x14336", f"mvue both copy {tile}"]]
        assert ratio == pytest.approx(sum(found) / len(found), abs=0.01)


def test_both_orientations_of_one_operand_are_one_kernel_with_one_read() -> None:
    dgrad, wgrad = cube(along=1, stream=1), cube(site=1, along=0, stream=2)
    both = predicted(dgrad, wgrad, method=Method.MVUE).shared.compress
    one = predicted(dgrad, method=Method.MVUE).shared.compress
    elements = 8192 * 8192
    bytes, over = elements * (2 + 18 / 8), OVER_BYTES[Method.MVUE, 2]
    assert both == pytest.approx(bytes / BANDWIDTH * over + LAUNCH)
    assert both < 2 * one
    again = cube(site=1, along=1, stream=2)  # the same orientation, other random numbers
    assert predicted(dgrad, again, method=Method.MVUE).shared.compress == pytest.approx(2 * one)


def test_one_compression_serves_all_that_ask_for_it() -> None:
    products = [cube(site=i, columns=n) for i, n in enumerate((8192, 1024, 1024))]
    together = predicted(*products)
    assert together.shared == predicted(products[0]).shared
    assert together.weighed.sparse == pytest.approx(
        sum(t.product for t in together.products.values()) + together.shared.compress
    )
    assert together.weighed.sparse == pytest.approx(sum(together.of(i).sparse for i in range(3)))
    assert together.gain == pytest.approx(together.weighed.dense - together.weighed.sparse)


def test_sizes_that_have_to_be_padded_cost_what_they_are_padded_to() -> None:
    even, odd = predicted(cube()), predicted(cube(columns=8190, k=8170))
    copies = 2 * (8170 * 8190 + 8192 * 8192) / BANDWIDTH + LAUNCH
    cut = 2 * 2 * 8192 * 8190 / BANDWIDTH + LAUNCH
    assert odd.products[0].padding == pytest.approx(copies + cut)
    assert odd.products[0].product == even.products[0].product
    assert even.products[0].padding == 0
    assert odd.weighed.dense < even.weighed.dense


def test_a_bias_and_what_an_exact_backward_unpacks_cost_passes() -> None:
    plain, bias = predicted(cube()), predicted(cube(bias=True))
    elements = 8192 * 8192
    assert bias.products[0].bias == pytest.approx(4 * elements / BANDWIDTH + LAUNCH)
    assert bias.weighed.sparse - plain.weighed.sparse == pytest.approx(bias.products[0].bias)
    exact = predicted(cube(unpacked=2))
    assert exact.shared.exact == pytest.approx(2 * ((2 + 9 / 8) * elements / BANDWIDTH + LAUNCH))
    assert exact.weighed == plain.weighed  # the rule asks for it
    assert exact.terms()["exact"] == exact.shared.exact
    both = predicted(cube(unpacked=2), cube(site=1, unpacked=2))
    assert both.shared.exact == exact.shared.exact


def test_the_host_counts_where_it_takes_longer_than_the_device() -> None:
    assert predicted(cube()).products[0].host == 0
    small = predicted(cube(256)).products[0]
    assert small.host == pytest.approx(FIGURES.setup.value - small.product)


def test_a_measured_gain_of_the_shape_is_used() -> None:
    gain = {"rows": 8192, "columns": 8192, "k": 8192, "gain": 2.0, "known": "measured"}
    data = {**H200.model_dump(), "gains": [{**gain, "source": "a test"}]}
    target = type(H200).model_validate(data)
    fast = estimate([cube()], kind(), Predicted(target)).products[0]
    assert fast.product == pytest.approx(8192**3 / FIGURES.dense.value + LAUNCH)


def test_the_librarys_own_compression_costs_a_write_and_a_read_more_for_each_orientation() -> None:
    opaque, elements = Kind(Method.MSE, Layout.CUSPARSELT), 8192 * 8192
    one = estimate([cube()], opaque, Predicted(H200)).shared
    assert one.prune == pytest.approx(4 * elements / BANDWIDTH + LAUNCH)
    assert one.compress == pytest.approx((2 + 9 / 8) * elements / BANDWIDTH + LAUNCH)
    transposed = estimate([cube(along=0)], opaque, Predicted(H200)).shared
    assert transposed.prune == pytest.approx(2 * one.prune)  # and a copy
    shared = estimate([cube(), cube(site=1)], opaque, Predicted(H200)).shared
    assert shared == one

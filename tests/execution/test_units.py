"""Products that share an operand are decided together, and the best subset where not all win."""

from __future__ import annotations

from nmcompile.compressed.layouts import Layout
from nmcompile.execution.cost import Kind, Predicted, Product, estimate
from nmcompile.execution.units import Unit, decide
from nmcompile.masks.formats import Method
from tests.execution.gpus import H100

CLOCK = Predicted(H100)
MSE, MVUE = (Kind(m, Layout.CUSPARSELT_SM90) for m in (Method.MSE, Method.MVUE))


def unit(*products: Product, kind: Kind = MSE, margin: float = 1.05) -> Unit:
    return decide(0, products, kind, CLOCK, margin)


def x(site: int, columns: int, **keys: int) -> Product:
    """A product that reads an activation of 16,384 tokens and 4,096 features."""
    return Product(site, 16384, columns, 4096, **keys)


def test_products_that_lose_alone_win_together() -> None:
    narrow = [x(site, 1024) for site in range(4)]
    assert all(unit(p).sparse == () for p in narrow)
    together = unit(*narrow)
    assert together.sparse == together.sites == (0, 1, 2, 3)
    assert together.estimate.weighed.speedup > 1.05
    assert together.of(0).sparse < unit(narrow[0]).of(0).sparse


def test_what_loses_beside_the_others_is_left_out() -> None:
    wide, small = Product(0, 16384, 14336, 512), Product(1, 16384, 250, 512, bias=True)
    decided = unit(wide, small)
    assert (decided.sites, decided.sparse) == ((0, 1), (0,))
    assert decided.of(1).speedup < 1
    both = estimate([wide, small], MSE, CLOCK).weighed.sparse
    added = both - estimate([wide], MSE, CLOCK).weighed.sparse
    assert decided.of(1).sparse == added


def test_one_read_for_both_gradients_decides_for_both() -> None:
    """Each alone pays a whole compression; 16,384 tokens, 4,096 x 1,536 features."""
    dgrad = Product(0, 16384, 1536, 4096, along=1, stream=1)
    wgrad = Product(1, 4096, 1536, 16384, along=0, stream=2)
    alone = [unit(p, kind=MVUE) for p in (dgrad, wgrad)]
    both = unit(dgrad, wgrad, kind=MVUE)
    total = both.estimate.weighed
    assert total.speedup > max(u.estimate.weighed.speedup for u in alone)


def test_the_margin_is_that_of_the_unit() -> None:
    products = [x(site, 4096) for site in range(3)]
    speedup = unit(*products).estimate.weighed.speedup
    assert unit(*products, margin=speedup * 0.999).sparse == (0, 1, 2)
    declined = unit(*products, margin=speedup * 1.001)
    assert declined.sparse == ()
    assert declined.estimate.weighed.speedup == speedup  # what came nearest is reported


def test_the_subset_is_the_best_of_all() -> None:
    """Against every subset."""
    products = [x(0, 14336), x(1, 1024, bias=True), x(2, 2048), x(3, 64)]
    found = unit(*products)
    subsets = [[p for i, p in enumerate(products) if mask >> i & 1] for mask in range(1, 16)]
    gains = {tuple(p.site for p in s): estimate(s, MSE, CLOCK).gain for s in subsets}
    assert gains[found.sparse] == max(gains.values())

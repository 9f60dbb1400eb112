"""Of two kernels that read the same, the one that reads more runs first."""

from __future__ import annotations

from typing import Any

import torch

from tests.passes.fused import compress, fused, half, nm

SEED = torch.ones(1, dtype=torch.int64)


def multiply(packed: Any, x: Any) -> list[Any]:
    """The products that read a gradient's two compressed forms."""
    kind = ("cusparselt_sm90", None, False, False)
    return [nm.mm(packed[0], x.t(), 64, *kind), nm.mm(packed[1], x, 32, *kind)]


def inputs(node: torch.fx.Node) -> int:
    """How many tensors a kernel reads."""
    return len(node.args[0])  # type: ignore[arg-type]


def test_the_kernel_that_reads_more_runs_first() -> None:
    def f(gate: Any, up: Any, dact: Any, seed: Any, x: Any) -> Any:
        first = multiply(compress(dact * gate, (1, 0), seed), x)
        second = multiply(compress(dact * up * gate.sigmoid(), (1, 0), seed), x)
        return first, second, first[0] + second[0], gate @ up.t()

    tensors = [half(64, 32, seed=k) for k in range(3)]
    gm, _ = fused(f, *tensors, SEED, half(64, 32))
    names = [
        n.name for n in gm.graph.nodes if n.target in (nm.fused_compress.default, nm.mm.default)
    ]
    kernels = gm.graph.find_nodes(op="call_function", target=nm.fused_compress.default)
    assert [inputs(k) for k in kernels] == [3, 2]
    first, *products, second = names[:4]
    assert (first, second) == (kernels[0].name, kernels[1].name)
    assert all("mm" in name for name in products)


def test_kernels_stay_where_one_depends_on_the_other_or_they_read_different_things() -> None:
    def chained(gate: Any, up: Any, dact: Any, seed: Any, x: Any) -> Any:
        first = multiply(compress(dact * gate, (1, 0), seed), x)
        scale = first[0].float().mean()
        return first, multiply(compress(dact * up * gate * scale, (1, 0), seed), x)

    def apart(gate: Any, up: Any, dact: Any, seed: Any, x: Any) -> Any:
        first = multiply(compress(gate.tanh(), (1, 0), seed), x)
        return first, multiply(compress(up.tanh(), (1, 0), seed), x)

    tensors = [half(64, 32, seed=k) for k in range(3)]
    for f in (chained, apart):
        gm, _ = fused(f, *tensors, SEED, half(64, 32))
        kernels = gm.graph.find_nodes(op="call_function", target=nm.fused_compress.default)
        products = gm.graph.find_nodes(op="call_function", target=nm.mm.default)
        assert kernels[0] < products[0] < products[1] < kernels[1]

"""Which producers join a compress kernel: the specs that the pass makes of small graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.launch import operand_shape
from nmcompile.passes.pipeline import POST_GRAD
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run

nm = torch.ops.nm
SEED = torch.ones(1, dtype=torch.int64)


def compress(x: torch.Tensor, dims: tuple[int, ...] = (1,), seed: Any = None) -> Any:
    method = "mse" if seed is None else "mvue"
    layout = "cusparselt_sm90"
    return nm.compress(x, seed, list(range(len(dims))), list(dims), 2, 4, method, layout)


def fused(f: Callable[..., Any], *args: torch.Tensor) -> tuple[fx.GraphModule, list[KernelSpec]]:
    """The graph of ``f`` after the pass, and the specs of its kernels."""
    decompositions = torch._decomp.core_aten_decompositions()
    gm = make_fx(f, decomposition_table=decompositions, tracing_mode="fake")(*args)
    kernels = Kernels(gm.graph, ("cpu",))
    run(POST_GRAD[:1], kernels, "graph")
    gm.graph.lint()
    gm.recompile()
    shapes = [[t.shape for t in tree_leaves(g(*args))] for g in (f, gm)]
    assert shapes[0] == shapes[1]
    return gm, kernels.specs


def half(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(torch.bfloat16)


def operators(spec: KernelSpec) -> list[str]:
    return [s.target.split(".")[1] for s in spec.statements]


def test_a_chain_with_a_bias_and_a_residual() -> None:
    def f(x: Any, b: Any, r: Any) -> Any:
        return compress((x + b).tanh() * 2.0 + r)

    _, (spec,) = fused(f, half(8, 32), half(32), half(8, 32, seed=1))
    assert operators(spec) == ["add", "tanh", "mul", "add"]
    assert [i.shape for i in spec.inputs] == ["full", "per_column", "full"]
    assert not spec.keep_dense


def test_swiglu_reads_two_tensors() -> None:
    _, (spec,) = fused(lambda g, u: compress(F.silu(g) * u), half(8, 32), half(8, 32))
    assert operators(spec)[-1] == "mul"
    assert len(spec.inputs) == 2


def test_views_and_broadcasts_of_a_batch() -> None:
    def f(x: Any, row: Any, scale: Any) -> Any:
        return compress((x * row * scale).reshape(16, 32))

    _, (spec,) = fused(f, half(2, 8, 32), half(2, 8, 1), half(1))
    assert [i.shape for i in spec.inputs] == ["full", "per_row", "scalar"]


def test_an_operand_with_other_readers_is_written_by_the_kernel_once() -> None:
    def f(x: Any, seed: Any) -> Any:
        y = x.sigmoid() * x
        return compress(y, (1, 0), seed), y.sum(0)

    gm, (spec,) = fused(f, half(8, 32), SEED)
    assert spec.keep_dense
    assert spec.orientations == "both"
    assert not any(n.target is torch.ops.aten.sigmoid.default for n in gm.graph.nodes)


def test_other_readers_do_not_wait_for_random_numbers_that_come_later() -> None:
    def f(x: Any) -> Any:
        y = x.sigmoid() * x
        total = y.sum(0)
        return compress(y, (1, 0), torch.ones(1, dtype=torch.int64) * total.sum().long()), total

    _, (spec,) = fused(f, half(8, 32))
    assert not spec.statements


def test_a_producer_that_others_read_stays_outside() -> None:
    def f(x: Any, y: Any) -> Any:
        h = x + y
        return compress(h * 2.0), h

    _, (spec,) = fused(f, half(8, 32), half(8, 32))
    assert operators(spec) == ["mul"]
    assert spec.inputs[0].source == "aten.add.Tensor"


def test_a_dropout_mask_is_an_input_and_its_random_numbers_are_not() -> None:
    def f(x: Any) -> Any:
        mask = torch.rand(x.shape) > 0.1
        return compress(torch.where(mask, x * 1.1, 0.0))

    _, (spec,) = fused(f, half(8, 32))
    assert "gt" not in operators(spec)
    assert "bool" in [i.dtype for i in spec.inputs]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: compress(x),
        lambda x: compress(x.clone()),
        lambda x: compress(x.cumsum(1)),
        lambda x: compress(x @ x.t() @ x),
        lambda x: compress(x.flip(0)),
    ],
)
def test_other_producers_are_read_as_they_are(f: Callable[..., Any]) -> None:
    _, (spec,) = fused(f, half(8, 32))
    assert spec.statements == ()
    assert [i.name for i in spec.inputs] == ["x"]


def test_kernels_of_equal_layers_are_one_kernel() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(x.tanh() * 2.0), compress(y.tanh() * 2.0)

    _, specs = fused(f, half(8, 32), half(16, 32))
    assert specs[0] == specs[1]


@pytest.mark.parametrize(
    ("x", "method"),
    [
        (torch.randn(8, 32), "mse"),  # float32 has no kernel
        (half(32, 8).t(), "mse"),  # lies column by column
        (half(8, 32), "uniform"),
    ],
)
def test_what_no_kernel_takes_stays_an_operator(x: torch.Tensor, method: str) -> None:
    def f(x: Any) -> Any:
        seed = torch.ones(1, dtype=torch.int64)
        return nm.compress(x, seed, [0], [1], 2, 4, method, "row_major")

    gm, specs = fused(f, x)
    assert specs == []
    assert "nm.compress" in gm.code


def test_the_oracle_of_a_spec_computes_in_float32_and_rounds_once() -> None:
    def f(x: Any, y: Any) -> Any:
        return compress(F.silu(x) * y + x)

    x, y = half(8, 32), half(8, 32, seed=2)
    _, (spec,) = fused(f, x, y)
    values = [x, y]
    expected = (F.silu(x.float()) * y.float() + x.float()).to(torch.bfloat16)
    actual = evaluate(spec, values, *operand_shape(spec, values))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-6)

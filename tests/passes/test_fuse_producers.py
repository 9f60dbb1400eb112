"""Compression and its producers become one kernel; what else it writes, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.passes.fused import compress, fused, half, nm, operators

SEED = torch.ones(1, dtype=torch.int64)


def test_an_operand_with_other_readers_is_written_by_the_kernel_once() -> None:
    def f(x: Any, seed: Any) -> Any:
        y = x.sigmoid() * x
        return compress(y, (1, 0), seed), y @ y.t()

    gm, (spec,) = fused(f, half(8, 32), SEED)
    assert spec.dense_results
    assert spec.orientations == "both"
    assert not any(n.target is torch.ops.aten.sigmoid.default for n in gm.graph.nodes)


def test_other_readers_do_not_wait_for_random_numbers_that_come_later() -> None:
    def f(x: Any) -> Any:
        y = x.sigmoid() * x
        total = y @ y.t()
        return compress(y, (1, 0), torch.ones(1, dtype=torch.int64) * total.sum().long()), total

    _, (spec,) = fused(f, half(8, 32))
    assert not spec.statements


def test_producers_stay_where_nothing_is_to_be_fused() -> None:
    gm, (spec,) = fused(lambda x: compress(x.tanh() * 2.0), half(8, 32), fuse=False)
    assert not spec.statements
    assert any(n.target is torch.ops.aten.tanh.default for n in gm.graph.nodes)


def test_an_operand_that_inductor_computes_anyway_is_computed_twice() -> None:
    """Its sum reads x; to read what the kernel wrote instead would be a write and a read more."""

    def f(x: Any) -> Any:
        y = x.sigmoid() * x
        return compress(y), y.sum(0)

    gm, (spec,) = fused(f, half(8, 32))
    assert operators(spec) == ["sigmoid", "mul"]
    assert not spec.dense_results
    assert any(n.target is torch.ops.aten.sigmoid.default for n in gm.graph.nodes)


def test_producers_of_more_inputs_than_the_operand_is_worth_stay_outside() -> None:
    """Three reads instead of a write and a read; with readers in Inductor's kernels none is saved."""

    def f(x: Any, y: Any, z: Any) -> Any:
        return compress(x * y + z), x.sum(0), y.sum(0), z.sum(0)

    _, (spec,) = fused(f, half(8, 32), half(8, 32), half(8, 32))
    assert not spec.statements


def swiglu_gradients(gate: Any, up: Any, dy: Any, seed: Any, rest: Any) -> Any:
    gated = gate.sigmoid()
    dup, dgate = dy * gate * gated, dy * up * (gated * (1.0 + gate * (1.0 - gated)))
    products = gate @ up.t(), rest @ rest.t()
    return compress(dup, (1, 0), seed), compress(dgate, (0, 1), seed), products


def test_operands_of_the_same_inputs_are_one_kernel() -> None:
    f, rest = swiglu_gradients, half(512, 512)  # a model that holds more than these
    inputs = [half(8, 32, seed=k) for k in range(3)]
    gm, (spec,) = fused(f, *inputs, SEED, rest)
    assert [(o.dims, o.keep_dense) for o in spec.operands] == [((1, 0), False), ((0, 1), False)]
    assert len(spec.inputs) == 3
    (node,) = gm.graph.find_nodes(op="call_function", target=nm.fused_compress.default)
    assert node.args[2] == [0, 1, 0, 1]
    values = [
        torch.ops.aten.view.dtype(t, torch.int16) for t in tree_leaves(gm(*inputs, SEED, rest)[:2])
    ]
    expected = [
        torch.ops.aten.view.dtype(t, torch.int16) for t in tree_leaves(f(*inputs, SEED, rest)[:2])
    ]
    for mine, wanted in zip(values, expected, strict=True):  # roundings of bfloat16 in between
        assert (mine == wanted).float().mean() > 0.8


def test_one_kernel_for_two_adds_little_to_memory_or_is_not_made() -> None:
    inputs = [half(8, 32, seed=k) for k in range(3)]
    _, specs = fused(swiglu_gradients, *inputs, SEED, half(8, 32))
    assert [len(s.operands) for s in specs] == [1, 1]
    assert all(s.statements for s in specs)


def test_an_operand_that_depends_on_the_other_ones_result_has_a_kernel_of_its_own() -> None:
    def f(x: Any, y: Any) -> Any:
        first = compress(x * y)
        scale = first[0].float().mean()
        return first, compress(x * y * scale)

    _, specs = fused(f, half(8, 32), half(8, 32))
    assert [len(s.operands) for s in specs] == [1, 1]


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

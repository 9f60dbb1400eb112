"""Compression and its producers become one kernel; what else it writes, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nmcompile.ops.fused_schemas import FusedPrune, spec_of
from nmcompile.passes import fuse_producers
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


def test_operands_of_the_same_inputs_are_one_kernel_where_that_is_quicker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    f, rest = swiglu_gradients, half(512, 512)  # a model that holds more than these
    inputs = [half(8, 32, seed=k) for k in range(3)]
    _, specs = fused(f, *inputs, SEED, rest)  # an H100 takes longer for it than for two
    assert [len(s.operands) for s in specs] == [1, 1]
    assert all(s.statements for s in specs)
    monkeypatch.setattr(fuse_producers, "OVER_BYTES_SEVERAL", 1.4)
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


def test_one_kernel_for_two_adds_little_to_memory_or_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fuse_producers, "OVER_BYTES_SEVERAL", 1.4)
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


# -- masks ---------------------------------------------------------------------------------------


def prune(x: Any, dims: list[int], seed: Any = None, stream: int = 0) -> Any:
    method = "mse" if seed is None else "mvue"
    return nm.prune(x, seed, stream, 2, 4, dims, method)


def fused_masks(gm: Any) -> list[FusedPrune]:
    return [FusedPrune.of(node) for node in FusedPrune.nodes(gm.graph)]


def statements(call: FusedPrune) -> list[str]:
    return operators(spec_of(call.spec))


def assert_nearly(gm: Any, f: Any, *args: Any) -> None:
    """Results are those of the graph as it was, but for roundings in between and their ties."""
    for mine, wanted in zip(tree_leaves(gm(*args)), tree_leaves(f(*args)), strict=True):
        assert (mine.shape, mine.stride()) == (wanted.shape, wanted.stride())
        assert torch.isclose(mine, wanted, rtol=2e-2, atol=1e-2).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mask_takes_in_what_computes_its_operand(dtype: torch.dtype) -> None:
    """Numbers a row and a column too; other masks of what was computed follow no other bytes."""

    def f(x: Any, bias: Any, scale: Any, seed: Any) -> Any:
        h = (x + bias).relu() * scale
        return prune(h, [1]), prune(h, [0], seed, 3), nm.keep_mask(h, None, 0, 2, 4, [1], "mse")

    args = [half(16, 32).to(dtype), half(32).to(dtype), half(16, 1).to(dtype), SEED]
    gm, specs = fused(f, *args)
    found = fused_masks(gm)
    assert not specs
    assert [statements(call) for call in found] == [["add", "relu", "mul"]] * len(found)
    assert [i.shape for i in spec_of(found[0].spec).inputs] == ["full", "per_column", "per_row"]
    assert any(call.seed is not None and call.stream == 3 for call in found)
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert_nearly(gm, f, *args)


def test_an_operand_that_a_product_reads_is_written_by_the_mask_s_kernel() -> None:
    def f(x: Any) -> Any:
        h = x.sigmoid() * x
        return prune(h, [1]), h @ h.t()

    gm, _ = fused(f, half(16, 32))
    (call,) = fused_masks(gm)
    assert spec_of(call.spec).dense_results
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sigmoid.default)
    assert_nearly(gm, f, half(16, 32))


def test_pixels_of_channels_last_images_have_their_channels_as_columns() -> None:
    def f(x: Any, bias: Any, other: Any) -> Any:
        h = (x + bias.view(1, -1, 1, 1)).relu()
        return prune(h, [1]), torch.conv2d(h, other)

    image = half(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    args = [image, half(8), half(4, 8, 1, 1)]
    gm, _ = fused(f, *args)
    (call,) = fused_masks(gm)
    assert [i.shape for i in spec_of(call.spec).inputs] == ["full", "per_column"]
    assert_nearly(gm, f, *args)


def test_a_mask_of_a_view_is_that_of_its_elements_in_memory() -> None:
    def f(x: Any, y: Any) -> Any:
        return prune((x * y).t(), [0]), prune((x - y).view(4, 4, 32).transpose(0, 2), [1, 0])

    args = [half(16, 32), half(16, 32, seed=1)]
    gm, _ = fused(f, *args)
    assert [call.size for call in fused_masks(gm)] == [[32, 16], [32, 4, 4]]
    assert_nearly(gm, f, *args)


def test_masks_of_products_conversions_and_float64_stay_as_they_are() -> None:
    def f(x: Any, y: Any) -> Any:
        return prune(x @ y, [1]), prune(x.float(), [1]), prune((x.double() * 2.0).relu(), [1])

    gm, _ = fused(f, half(16, 16), half(16, 16))
    assert not fused_masks(gm)
    assert len(gm.graph.find_nodes(op="call_function", target=nm.prune.default)) == 3


def test_no_mask_is_fused_where_nothing_is_to_be() -> None:
    gm, _ = fused(lambda x: prune(x.tanh() * 2.0, [1]), half(8, 32), fuse=False)
    assert not fused_masks(gm)

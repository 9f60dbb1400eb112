"""FLOPs of one call of an operator, by its shapes: of nodes of a graph, and of what ran eagerly.

Formulas are those of ``torch.utils.flop_counter``; below are those of operators that it lacks. An
FMA is two FLOPs. Nothing is known of fused attention, whose products no policy can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from nmcompile._torch import OpOverload, argument_names, tree_map_only
from nmcompile.gemm import size_hint

aten = torch.ops.aten


def flops(op: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> float | None:
    """FLOPs of a call; None for what multiplies nothing, and where no formula is known.

    Args:
        op: the operator.
        args, kwargs, result: as given and returned; of tensors only the shapes are read, of
            symbolic sizes what was traced.
    """
    if not isinstance(op, OpOverload):
        return None
    packet = op.overloadpacket
    shapes, named, result = tree_map_only(torch.Tensor, _shape, (list(args), kwargs, result))
    if packet in _FORMULAS:
        given = {**dict(zip(argument_names(op), shapes, strict=False)), **named}
        return float(_FORMULAS[packet](given, result)) or None
    if packet in flop_registry and "attention" not in str(packet):
        return float(flop_registry[packet](*shapes, **named, out_val=result)) or None
    return None


def flops_of_node(node: fx.Node, op: Any = None) -> float | None:
    """The same of a node of a graph, by its metadata."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    try:
        return flops(op or node.target, args, kwargs, node.meta.get("val"))
    except (TypeError, ValueError, AssertionError):  # not a call that the formula was written for
        return None


def _shape(tensor: torch.Tensor) -> list[int]:
    return [size_hint(size) for size in tensor.shape]


def _matrix_vector(given: dict[str, Any], result: Any) -> int:
    matrix: list[int] = given.get("mat") or given["self"]
    return 2 * math.prod(matrix)


def _grouped(given: dict[str, Any], result: list[int]) -> int:
    """[S,I] x [E,I,O], [M,S] x [S,N] (grouped along S), and batches of matrices."""
    left: list[int] = given["self"]
    right: list[int] = given["mat2"]
    if len(left) == len(right) == 2:
        return 2 * left[0] * left[1] * right[1]
    return 2 * math.prod(left) * right[-1]


def _batches(given: dict[str, Any], result: Any) -> int:
    left: list[int] = given["batch1"]
    return 2 * math.prod(left) * int(given["batch2"][-1])


def _distances(given: dict[str, Any], result: Any) -> int:
    left: list[int] = given["x1"]
    return 2 * math.prod(left) * int(given["x2"][-2])


def _window(given: dict[str, Any], result: list[int]) -> int:
    window, inputs, _ = given["weight"]
    return 2 * math.prod(result) * int(window) * int(inputs)


def _trilinear(given: dict[str, Any], result: Any) -> int:
    """A sum over products of three tensors: two multiplications or additions for each of them."""
    spread = [_expanded(given[f"i{i}"], given[f"expand{i}"]) for i in (1, 2, 3)]
    return 2 * math.prod(max(sizes) for sizes in zip_longest(*spread, fillvalue=1))


def _expanded(shape: list[int], dims: Sequence[int]) -> list[int]:
    sizes = list(shape)
    for dim in dims:
        sizes.insert(dim, 1)
    return sizes


def _recurrent(given: dict[str, Any], result: Any) -> int:
    """Every token is multiplied by every matrix of the layer."""
    rows: list[int] = given["input"][:-1]
    matrices = [
        shape for name in given if name.startswith("weight") for shape in _lists(given[name])
    ]
    return 2 * math.prod(rows) * sum(math.prod(shape) for shape in matrices if len(shape) == 2)


def _lists(shapes: Any) -> Iterator[list[int]]:
    """A shape, or a list of shapes, as shapes."""
    if isinstance(shapes, (list, tuple)):
        if shapes and all(isinstance(size, int) for size in shapes):
            yield list(shapes)
        else:
            for shape in shapes:
                yield from _lists(shape)


_FORMULAS: dict[Any, Callable[[dict[str, Any], Any], int]] = {
    **dict.fromkeys((aten.mv, aten.addmv, aten.dot, aten.vdot), _matrix_vector),
    aten._grouped_mm: _grouped,
    aten._scaled_grouped_mm: _grouped,
    aten._int_mm: _grouped,
    aten.addbmm: _batches,
    aten._euclidean_dist: _distances,
    aten.conv_tbc: _window,
    aten._trilinear: _trilinear,
    aten.mkldnn_rnn_layer: _recurrent,
    aten._cudnn_rnn: _recurrent,
}

"""Calls as named fields: read from a node, changed by name, written back."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from torch import fx

from nmcompile.ops.call import Call, check_names
from nmcompile.ops.schemas import Decompress, Mm, RankSeed


def product(**given: Any) -> tuple[fx.Node, fx.Node, fx.Node]:
    """A node that calls ``nm::mm``, and its two operands."""
    graph = fx.Graph()
    packed, dense = graph.placeholder("packed"), graph.placeholder("dense")
    node = graph.call_function(Mm.operator, (packed, dense, 16, "row_major"), given)
    graph.output(node)
    return node, packed, dense


def test_what_is_left_out_has_the_default_of_the_operator() -> None:
    node, packed, dense = product()
    assert Mm.of(node) == Mm(packed, dense, 16, "row_major", None, False, False)


def test_an_argument_may_be_given_by_keyword() -> None:
    node, *_ = product(transpose_result=True)
    call = Mm.of(node)
    assert (call.transpose_result, call.bias, call.column_major) == (True, None, False)


def test_a_call_is_written_back_by_position() -> None:
    node, packed, _ = product(transpose_result=True)
    with node.graph.inserting_before(node):
        other = node.graph.placeholder("other")
    call = replace(Mm.of(node), dense=other, rows=32)
    call.write(node)
    assert node.args == (packed, other, 32, "row_major", None, True, False) == call.args
    assert node.kwargs == {}
    assert list(other.users) == [node]
    assert Mm.of(node) == call
    node.graph.lint()


def test_a_call_does_not_change() -> None:
    node, *_ = product()
    with pytest.raises(FrozenInstanceError):
        Mm.of(node).rows = 3  # type: ignore[misc]


def test_a_node_of_another_operator_is_refused_by_name() -> None:
    node, *_ = product()
    with pytest.raises(AssertionError, match=r"mm_default.* is no nm\.decompress\.default"):
        Decompress.of(node)
    with pytest.raises(AssertionError):
        Decompress(node, 16, 16, "row_major").write(node)


def test_nodes_are_those_that_call_the_operator() -> None:
    node, *_ = product()
    assert Mm.nodes(node.graph) == [node]
    assert Decompress.nodes(node.graph) == []


def test_a_call_of_tensors_runs() -> None:
    seed = torch.tensor([7])
    assert torch.equal(RankSeed(seed, 3).run(), torch.ops.nm.rank_seed(seed, 3))


@dataclass(frozen=True)
class Renamed(Call):
    operator = torch.ops.aten.mm.default
    self: Any
    other: Any


@dataclass(frozen=True)
class Reordered(Call):
    operator = torch.ops.aten.addmv.default
    self: Any
    vec: Any
    mat: Any
    beta: Any = 1
    alpha: Any = 1


@dataclass(frozen=True)
class Shortened(Call):
    operator = torch.ops.aten.dot.default
    self: Any


@pytest.mark.parametrize("wrong", [Renamed, Reordered, Shortened], ids=lambda c: c.__name__)
def test_fields_that_are_not_the_operators_arguments_are_refused(wrong: type[Call]) -> None:
    with pytest.raises(AssertionError, match=wrong.__name__):
        check_names(wrong)

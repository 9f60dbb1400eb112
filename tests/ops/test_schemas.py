"""Every operator ``nm``: one class that says what its schema says, and results that are its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields

import pytest
import torch

import nmcompile.ops  # noqa: F401  (registers torch.ops.nm)
from nmcompile.graph import aten
from nmcompile.ops import fused_schemas, observe, schemas
from nmcompile.ops.call import Call, check_names

HOMES = (schemas.__name__, fused_schemas.__name__)
SHOWS = observe.__name__  # it computes nothing, and hands out what it reads


def calls(cls: type[Call] = Call) -> Iterator[type[Call]]:
    """The package's classes that stand for an operator."""
    for sub in cls.__subclasses__():
        if sub.__module__ in (*HOMES, SHOWS, aten.__name__):
            if hasattr(sub, "operator"):
                yield sub
            yield from calls(sub)


EVERY = list(calls())
OURS = [c for c in EVERY if c.__module__ in HOMES]


def test_every_operator_has_a_class() -> None:
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("nm::")}
    ours = [*OURS, observe.Observe]
    assert {c.operator.name() for c in ours} == registered
    assert len(ours) == len(registered) == 18


@pytest.mark.parametrize("call", EVERY, ids=lambda c: c.__name__)
def test_names_and_defaults_are_those_of_the_schema(call: type[Call]) -> None:
    check_names(call)
    for field, argument in zip(fields(call), call.operator._schema.arguments, strict=True):
        assert (field.default is not MISSING) == argument.has_default_value()
        if argument.has_default_value():
            assert field.default == argument.default_value
    assert call.__doc__


@pytest.mark.parametrize("call", OURS, ids=lambda c: c.__name__)
def test_an_operator_changes_nothing_and_its_results_are_its_own(call: type[Call]) -> None:
    schema = call.operator._schema
    assert not schema.is_mutable
    assert all(r.alias_info is None for r in schema.returns)
    assert torch.Tag.pt2_compliant_tag in call.operator.tags
    others = {
        schemas.LibraryMm: torch.Tag.needs_exact_strides,
        schemas.PruneInAnyLayout: torch.Tag.flexible_layout,
    }
    assert others.get(call, torch.Tag.needs_fixed_stride_order) in call.operator.tags

"""Exported models: compiled like any module, or their forward graph rewritten for inference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import NMError
from nmcompile.gemm import OperandKind
from tests.end_to_end.eager_oracle import Oracle
from tests.setups.steps import (
    MASKS,
    MSE,
    assert_close,
    compiled,
    eager_step,
    mlp,
    one_step,
    roles,
)

SHAPES = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(), nn.Linear(16, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def exported(model: nn.Module, x: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(model, (x,), dynamic_shapes=sizes)


def rows(count: int = 8) -> Tensor:
    return torch.randn(count, 16, dtype=torch.float64)


@pytest.mark.slow
@SHAPES
def test_an_exported_model_trains_as_the_model(dynamic: bool) -> None:
    model, x = Net(), rows()
    expected = eager_step(model, x)
    module = exported(model, x, dynamic).module()
    run = compiled(module, MSE)
    assert_close(one_step(run, module, x), expected)
    names = [s.module for s in nmcompile.last_report().sites if s.role == "fprop"]
    assert names == ["body.0", "body.2", "head"]
    assert all(s.pruned for s in nmcompile.last_report().sites)
    if dynamic:
        x = rows(5)
        assert_close(one_step(run, module, x), eager_step(model, x))


@SHAPES
def test_the_rewritten_forward_of_a_decomposed_export(dynamic: bool) -> None:
    model, x = Net(), rows()
    program = exported(model, x, dynamic).run_decompositions()
    rewritten = nmcompile.rewrite(program.module(), "full")
    report = rewritten.meta["nm_report"]
    assert roles(report.sites) == [(n, "fprop", "activation") for n in ("body.0", "body.2", "head")]
    assert all(s.operands == (OperandKind.ACTIVATION, OperandKind.WEIGHT) for s in report.sites)
    for batch in [x, *([rows(5)] if dynamic else [])]:
        with Oracle(MASKS):
            expected = model(batch)
        assert_close([rewritten(batch)], [expected])
    with pytest.warns(UserWarning, match="nm::prune: an autograd kernel was not registered"):
        rewritten(x).sum().backward()


def by_export(model: nn.Module, x: Tensor) -> Any:
    return exported(model, x, False).graph_module


def by_pre_dispatch(model: nn.Module, x: Tensor) -> Any:
    return make_fx(model, pre_dispatch=True)(x)


@pytest.mark.parametrize("trace", [by_export, by_pre_dispatch])
def test_a_graph_that_hides_its_products_is_refused(trace: Any) -> None:
    with pytest.raises(NMError, match=r"aten.linear.default is made of .*run_decompositions"):
        nmcompile.rewrite(trace(Net(), rows()), "full")

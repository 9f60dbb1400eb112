"""``nmcompile.rewrite``: the passes on a graph that the user traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import NMError
from tests.graph.training_step import traced


def test_policy_dense_computes_what_the_graph_computed() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    gm, params, _ = traced(model, torch.randn(12, 16))
    x = torch.randn(12, 16)
    (a, b), (c, d) = nmcompile.rewrite(gm, "dense")(params, x), gm(params, x)
    assert torch.equal(a, c)
    assert all(torch.equal(p, q) for p, q in zip(b, d, strict=True))


def test_a_pattern_that_names_nothing() -> None:
    gm, *_ = traced(nn.Linear(16, 8), torch.randn(4, 16))
    with pytest.raises(NMError, match=r"no placeholder 'parms_\*': did you mean 'params_"):
        nmcompile.rewrite(gm, "full", weights="parms_*")


def test_a_graph_without_values() -> None:
    gm = torch.fx.symbolic_trace(nn.Linear(4, 4))
    with pytest.raises(NMError, match=r"no meta\['val'\]: trace with .*make_fx"):
        nmcompile.rewrite(gm, "full")

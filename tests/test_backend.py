"""The backend by its name: options, errors and the report of the newest call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import NMError, Policy
from nmcompile.inductor.options import read_options
from tests.report.net import Net
from tests.setups.steps import density


def run(options: dict[str, Any] | None = None, **keys: Any) -> torch.Tensor:
    layer = nn.Linear(16, 16, bias=False)
    nn.init.eye_(layer.weight)
    return torch.compile(layer, backend="nm_sparse", options=options, **keys)(torch.randn(8, 16))


def test_the_backend_is_registered_by_name() -> None:
    assert "nm_sparse" in torch.compiler.list_backends()


def test_no_options_mean_the_full_recipe() -> None:
    assert density(run()) == 0.5
    assert Policy.resolve(None) == Policy.recipe("full")


def test_a_policy_object_and_a_mapping() -> None:
    table = {"rule": [{"prune": "activation", "role": "fprop", "format": "1:4"}]}
    assert density(run({"policy": Policy(rules=table["rule"])})) == 0.25
    assert density(run({"policy": table})) == 0.25


def test_mode_works() -> None:
    assert density(run(mode="max-autotune-no-cudagraphs")) == 0.5


def test_inductor_options_go_to_inductor() -> None:
    assert density(run({"policy": "full", "max_fusion_size": 8})) == 0.5
    assert read_options(None, {"max-fusion-size": 8}).inductor == {"max_fusion_size": 8}


def test_an_error_reaches_the_user_through_dynamo() -> None:
    with pytest.raises(Exception, match="did you mean 'policy'"):
        run({"polcy": "full"})


# The newest report


def test_last_report_needs_a_compilation() -> None:
    with pytest.raises(NMError, match=r"call a model compiled with torch.compile\(model, backend="):
        nmcompile.last_report()


def test_last_report_is_of_the_newest_compile_call() -> None:
    a, b = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
    for model, expected in ((a, 2), (b, 5)):
        torch.compile(model, backend="nm_sparse")(torch.randn(4, 8))
        assert len(nmcompile.last_report().sites) == expected


def test_last_report_equals_explain() -> None:
    model, x = Net(), torch.randn(4, 4, 6, 6)
    torch.compile(model, backend="nm_sparse", dynamic=False)(x)
    ran, planned = nmcompile.last_report(), nmcompile.explain(model, x)
    assert ran.sites == planned.sites
    assert planned.totals.saved_bytes  # compiled code does not know what it saves
    assert ran.totals == planned.totals.model_copy(update={"saved_bytes": None})

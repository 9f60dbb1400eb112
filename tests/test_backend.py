"""The backend by its name: options, errors and the report of the newest call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import NMError, NMWarning, Policy
from nmcompile.inductor.options import read_options
from nmcompile.reason import Code
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


# What no graph reaches


class Recurrent(nn.Module):
    """Dynamo gives up on a function that reads a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(8, 8), nn.LSTM(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.embed(x))[0]


def test_a_model_of_which_nothing_is_compiled_warns_once_and_has_a_report() -> None:
    model, x = torch.compile(Recurrent(), backend="nm_sparse"), torch.randn(2, 3, 8)
    with pytest.warns(NMWarning, match=r"nothing of Recurrent was compiled.*RNN, GRU, or LSTM"):
        model(x)
    model(x)
    report = nmcompile.last_report()
    assert [note.code for note in report.notes] == [Code.NO_GRAPH]
    assert report.uncompiled == ("embed", "rnn")


def test_a_dense_policy_does_not_warn_and_an_error_speaks_for_itself() -> None:
    x = torch.randn(2, 3, 8)
    torch.compile(Recurrent(), backend="nm_sparse", options={"policy": "dense"})(x)
    assert [note.code for note in nmcompile.last_report().notes] == [Code.NO_GRAPH]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="RNN, GRU, or LSTM"):
        torch.compile(Recurrent(), backend="nm_sparse", fullgraph=True)(x)
    (note,) = nmcompile.last_report().notes
    assert note.code is Code.FAILED
    assert "nothing of Recurrent was compiled: " in note.text


@torch._dynamo.config.patch(recompile_limit=2)
def test_every_call_of_compile_has_versions_of_its_own() -> None:
    for width in (8, 12, 16, 20):  # nn.Sequential shares its code with all of PyTorch's classes
        model = nn.Sequential(nn.Linear(8, width))
        torch.compile(model, backend="nm_sparse", dynamic=False)(torch.randn(4, 8))
        assert len(nmcompile.last_report().sites) == 2
    compiled = torch.compile(model, backend="nm_sparse", dynamic=False)
    for rows in (5, 6):
        compiled(torch.randn(rows, 8))
    with pytest.warns(NMWarning, match="has been compiled 2 times for different inputs"):
        compiled(torch.randn(7, 8))
    assert [note.code for note in nmcompile.last_report().notes] == [Code.RECOMPILE_LIMIT]


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

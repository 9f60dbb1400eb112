"""Two versions of a graph: which is made, and which runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

import nmcompile
from nmcompile.inductor.observed import is_observed
from nmcompile.inductor.options import Settings, read_options
from nmcompile.ops.observe import SAMPLES
from nmcompile.policy import Policy

OBSERVER = Settings(Policy.recipe("full"), observer=3)


def test_what_trains_and_is_pruned_is_observed() -> None:
    reports = nmcompile.explain(nn.Linear(16, 8), torch.randn(4, 16), policy="full").graphs
    dense = nmcompile.explain(nn.Linear(16, 8), torch.randn(4, 16), policy="dense").graphs
    assert is_observed(OBSERVER, reports)
    assert not is_observed(OBSERVER, dense)
    assert not is_observed(Settings(Policy.recipe("full")), reports)
    with torch.no_grad():
        assert not is_observed(OBSERVER, reports)


class Sample(list):  # type: ignore[type-arg]
    def __call__(self, call: Any) -> None:
        self.append(call)


@pytest.mark.parametrize("options", [{}, {"nm.meter": 3}, {"nm.meter": 3, "cpp_wrapper": True}])
def test_the_second_version_runs_while_a_sample_is_open(options: dict[str, Any]) -> None:
    options = {"policy": "activations", **options}
    run = torch.compile(nn.Linear(16, 8), backend="nm_sparse", options=options)
    x, sample = torch.randn(4, 16), Sample()
    first = run(x)
    SAMPLES[3] = sample
    assert torch.equal(run(x), first)
    del SAMPLES[3]
    assert torch.equal(run(x), first)
    assert len(sample) == ("nm.meter" in options)


def test_what_is_shown_is_not_held_to_the_end() -> None:
    layers = [nn.Linear(16, 16) for _ in range(4)]
    run = torch.compile(nn.Sequential(*layers), backend="nm_sparse", options={"nm.meter": 3})
    _, codes = run_and_get_code(lambda: run(torch.randn(64, 16)).sum().backward())
    shown = [c for c in codes if "nm.observe" in c]
    assert shown
    for code in shown:
        body = code[code.index("def call") :]
        assert body.index("nm.observe") < body.rindex("extern_kernels")


@pytest.mark.parametrize("meter", ["3", 3.0, True, [3]])
def test_the_option_is_a_number(meter: Any) -> None:
    with pytest.raises(nmcompile.OptionError, match=r"nm\.meter = .*nmcompile\.telemetry writes"):
        read_options(None, {"nm.meter": meter})

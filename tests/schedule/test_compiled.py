"""What was compiled of a model: by itself, in place, block by block, and by a schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nmcompile
from nmcompile import Schedule
from nmcompile.schedule.compiled import reports_of, wrappers_of
from tests.tuning.nets import Blocks


def policies(wrappers: list[Any]) -> list[Any]:
    return [wrapper.kwargs["options"]["policy"] for wrapper in wrappers]


def test_wrappers_of_what_was_compiled() -> None:
    plain = nn.Linear(8, 8)
    run = torch.compile(plain, backend="nm_sparse", options={"policy": "full"})
    assert policies(wrappers_of(run)) == ["full"]
    assert wrappers_of(plain) == []
    assert wrappers_of(torch.compile(plain)) == []
    assert wrappers_of(torch.compile(lambda x: plain(x), backend="nm_sparse"))
    assert wrappers_of(print) == []
    assert len(wrappers_of(nmcompile.compile(Blocks()))) == 1
    assert len(wrappers_of(nmcompile.compile(Blocks(), each="blocks.*.*"))) == 6


def test_wrappers_of_all_versions_of_a_schedule() -> None:
    model = Blocks()
    schedule = Schedule(model, {0: "dense", 5: "full", 9: "dense"})
    for _ in range(2):
        assert policies(wrappers_of(model)) == [schedule.phases[0], schedule.phases[5]]
        schedule.warm_up()  # at the first call


def test_reports_of_parts() -> None:
    model = Blocks()
    nmcompile.compile(model.head, "activations")
    found = dict(reports_of(model))
    assert found.keys() == {"head"}
    assert not found["head"].graphs
    model.head(torch.randn(4, 16))
    assert dict(reports_of(model))["head"].sites[0].pruned == "activation"

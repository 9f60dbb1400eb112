"""Kept masks as inputs: the captured graph stays as it was, and a call's masks are its weights'."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

import nmcompile
from nmcompile import Policy, PolicyError
from nmcompile.inductor.kept_inputs import (
    check_whole,
    masks_appended,
    rows_of,
    with_full_masks,
    with_kept_masks,
)
from nmcompile.report.rows import KeptRow
from nmcompile.weight_masks import table

KEPT = Policy(extends="weights", refresh=40)
ROW = KeptRow(
    input=1,
    names=("weight",),
    format="2:4",
    method="mse",
    dims=(1,),
    groups=1,
    refresh=3,
    decay=0.0,
)


def traced() -> tuple[fx.GraphModule, list[torch.Tensor]]:
    gm = fx.symbolic_trace(lambda x, w: torch.nn.functional.linear(x, w))
    return gm, [torch.randn(4, 8), nn.Parameter(torch.randn(6, 8))]


def test_inputs_are_appended_and_taken_away_again() -> None:
    gm, inputs = traced()
    before = gm.code
    other = ROW.model_copy(update={"dims": (0,)})
    with masks_appended(gm, inputs, [ROW, other]) as given:
        nodes = [n.name for n in gm.graph.find_nodes(op="placeholder")]
        assert nodes == ["x", "w", "kept_mask_0", "kept_mask_1"]
        assert [g.dtype for g in given[2:]] == [torch.uint8] * 2
        assert torch.equal(gm(*given), inputs[0] @ inputs[1].t())
    assert gm.code == before
    with pytest.raises(RuntimeError), masks_appended(gm, inputs, [ROW]):
        raise RuntimeError
    assert gm.code == before


def test_without_masks_nothing_is_touched() -> None:
    gm, inputs = traced()
    with masks_appended(gm, inputs, ()) as given:
        assert given is inputs
    assert with_kept_masks(len, ()) is len
    assert with_full_masks(len, ()) is len


def test_a_call_reads_the_masks_of_its_own_weights() -> None:
    calls: list[tuple[Any, ...]] = []
    run = with_kept_masks(lambda *args: calls.append(args), [ROW])
    x, weights = torch.randn(4, 8), [nn.Parameter(torch.randn(6, 8)) for _ in range(2)]
    for w in weights:
        run(x, w)
    for w, (_, given, mask) in zip(weights, calls, strict=True):
        assert given is w
        assert mask.data_ptr() == table.masks_of(w)[ROW.stored].mask.data_ptr()
        assert torch.equal(mask != 0, ROW.stored.take(w))
    assert table.masks_of(weights[0])[ROW.stored].life.refresh == 3


def test_what_is_only_looked_at_keeps_everything() -> None:
    x, w = torch.randn(4, 8), nn.Parameter(torch.randn(6, 8))
    mask = with_full_masks(lambda *args: args[-1], [ROW])(x, w)
    assert mask.all()
    assert table.masks_of(w) == {}


def test_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharded(nn.Linear):
        pass

    fsdp = SimpleNamespace(FSDPModule=Sharded, FullyShardedDataParallel=Sharded)
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", fsdp)
    model = nn.Sequential(Sharded(8, 8))
    check_whole(Policy.recipe("weights"), [model])
    check_whole(KEPT, [None, nn.Linear(8, 8)])
    with pytest.raises(PolicyError, match="Sequential is sharded by FSDP, and masks are kept of"):
        check_whole(KEPT, [None, model])


def test_rewriting_has_no_place_for_masks() -> None:
    gm, _ = traced()
    with pytest.raises(PolicyError, match="no place for masks that are kept between steps"):
        nmcompile.rewrite(gm, KEPT)


@pytest.mark.slow
def test_a_warm_cache_knows_the_masks() -> None:
    x, seen = torch.randn(4, 16), []
    for _ in range(2):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Linear(16, 8)
        torch.compile(model, backend="nm_sparse", options={"policy": KEPT})(x).sum().backward()
        seen.append((rows_of(nmcompile.last_report().graphs), nmcompile.Masks(model).tensors()))
    assert seen[0][0] == seen[1][0] != ()
    assert torch.equal(seen[0][1]["weight"], seen[1][1]["weight"])

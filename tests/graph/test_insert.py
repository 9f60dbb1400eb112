"""New nodes stand on the right side of the partition and carry their site's metadata."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import Policy, Rule
from nmcompile.graph.insert import Inserter, in_backward


def graph_with_site(tag: str | None) -> tuple[fx.GraphModule, fx.Node]:
    gm = make_fx(lambda x: x @ x, tracing_mode="fake")(torch.randn(4, 4))
    (site,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    site.meta.update(seq_nr=7, recompute="marked", ac_graph_id=3, unrelated="x")
    if tag:
        site.meta["partitioner_tag"] = tag
    return gm, site


def test_a_new_node_inherits_path_checkpoint_and_value() -> None:
    gm, site = graph_with_site("is_forward")
    insert = Inserter(gm.graph)
    with insert.before(site):
        new = insert.call(
            site, torch.ops.nm.prune.default, site.args[0], None, 0, 2, 4, [1], "mse",
            mark="note", name="pruned",
        )  # fmt: skip
    assert new.name == "pruned"
    assert new.next is site
    assert {k: new.meta[k] for k in ("seq_nr", "recompute", "ac_graph_id", "partitioner_tag")} == {
        "seq_nr": 7,
        "recompute": "marked",
        "ac_graph_id": 3,
        "partitioner_tag": "is_forward",
    }
    assert "unrelated" not in new.meta
    assert repr(new.meta["nm"]) == "note"
    assert new.meta["val"].shape == (4, 4)
    gm.graph.lint()


def test_what_is_inserted_for_the_backward_must_stay_there() -> None:
    gm, site = graph_with_site("is_backward")
    insert = Inserter(gm.graph)
    with insert.before(site):
        new = insert.call(site, torch.ops.aten.permute.default, site.args[0], [1, 0])
    assert new.meta["partitioner_tag"] == "must_be_in_backward"
    assert in_backward(new)
    assert in_backward(site)


class Function(torch.autograd.Function):
    """AOTAutograd does not tag its backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


def test_the_backward_of_a_custom_function_is_one() -> None:
    """Each side of the partition draws a seed of its own."""
    w, x = torch.nn.Parameter(torch.randn(8, 16)), torch.randn(12, 16, requires_grad=True)
    random = Rule(role="fprop", prune="weight", format="2:4", method="uniform")
    policy = Policy(extends="gradients", rules=[random])
    report = nmcompile.explain(lambda x: Function.apply(x, w).cos(), x, policy=policy)
    assert report.graphs[0].after.count("aten.randint") == 2


def test_graphs_without_a_partition_have_no_backward() -> None:
    gm, site = graph_with_site(None)
    insert = Inserter(gm.graph)
    with insert.before(site):
        new = insert.call(site, operator.getitem, [site.args[0]], 0)
    assert "partitioner_tag" not in new.meta
    assert not in_backward(site)

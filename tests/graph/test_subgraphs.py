"""What higher-order operators hold is known from its callers, and planned once."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._higher_order_ops.map import map as map_over
from torch.utils.checkpoint import checkpoint

import nmcompile
from nmcompile import NMWarning, PolicyError
from nmcompile.gemm import OperandKind
from nmcompile.graph.subgraphs import inside_of, kinds_in, not_planned, remember
from nmcompile.reason import Code
from tests.graph.calls import (
    Block,
    Branch,
    Map,
    Plain,
    Scan,
    While,
    calling,
    kind_of_input,
    network,
    ops,
)

GRADIENT, ACTIVATION, WEIGHT = OperandKind.GRADIENT, OperandKind.ACTIVATION, OperandKind.WEIGHT
X = torch.randn(12, 16, requires_grad=True)


def call(g: fx.Graph, body: fx.Node, *operands: fx.Node) -> fx.Node:
    """A call of a region."""
    return g.call_function(ops.invoke_subgraph, (body, "name", *operands))


def two(a: Any, b: Any) -> Any:
    """A body of two inputs and results."""
    return a + 1, b + 1


def found(gm: fx.GraphModule, name: str = "f") -> Any:
    """What is known of the graph of that name."""
    return kinds_in(gm.graph, kind_of_input)[1][getattr(gm, name)]


def test_the_strongest_kind_over_all_calls() -> None:
    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        return [call(g, n["f"], n["x"], n["w"]), call(g, n["f"], n["w"], n["d"])]

    inside = found(calling(write, f=two))
    assert inside.kinds == (ACTIVATION, GRADIENT)
    assert (inside.operator, inside.times) == ("invoke_subgraph", 2)


def test_each_result_has_a_kind_of_its_own() -> None:
    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        results = call(g, n["f"], n["x"], n["w"])
        return [g.call_function(operator.getitem, (results, i)) for i in range(2)]

    gm = calling(write, f=two)
    kinds, _ = kinds_in(gm.graph, kind_of_input)
    (values,) = gm.graph.output_node().args
    assert [kinds[v] for v in values] == [ACTIVATION, WEIGHT]


def test_what_a_loop_carries_becomes_as_strong_as_what_it_adds() -> None:
    def add(carried: Tensor, other: Tensor, x: Tensor, d: Tensor) -> Any:
        return other, carried + d, x

    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        n["d"].meta["val"] = n["x"].meta["val"] = torch.zeros(7, 2)
        zeros = [g.call_function(torch.zeros, (2,)) for _ in range(2)]
        return g.call_function(ops.scan, (n["f"], zeros, [n["x"], n["d"]], []))

    inside = found(calling(write, f=add))
    assert inside.kinds == (GRADIENT, GRADIENT, ACTIVATION, GRADIENT)
    assert inside.times == 7


def test_graphs_inside_of_graphs() -> None:
    def scan(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        n["x"].meta["val"] = torch.zeros(5, 2)
        return g.call_function(ops.scan, (n["f"], [n["d"]], [n["x"]], [n["w"]]))

    inner = calling(lambda g, n: [call(g, n["f"], n["w"], n["x"])] * 2, f=two)
    middle = calling(
        lambda g, n: [call(g, n["f"], *(n[k] for k in "xwd")) for _ in range(3)], f=inner
    )
    assert found(middle).times == 3
    outer = calling(scan, f=middle)
    kinds, bodies = kinds_in(outer.graph, kind_of_input)
    assert [bodies[gm].times for gm in (middle, inner)] == [5, 15]
    assert bodies[inner].operators == {"invoke_subgraph", "scan"}
    remember(bodies)
    assert inside_of(inner.graph) == bodies[inner]
    assert inside_of(outer.graph) is None
    assert kinds[outer.graph.find_nodes(op="placeholder")[0]] is ACTIVATION


def test_a_region_is_what_its_module_would_be_without_it() -> None:
    plain, region = (nmcompile.explain(network(block), X) for block in (Plain, Block))
    assert region.totals.flops == plain.totals.flops
    assert region.totals.pruned_flops == plain.totals.pruned_flops == region.totals.flops
    body = next(g for g in region.graphs if g.operator)
    assert (body.operator, body.times) == ("invoke_subgraph", 2)
    assert {(s.module, s.role, s.pruned) for s in body.sites} == {
        (f"{{0..1}}.{name}", role, pruned)
        for name in ("up", "down")
        for role, pruned in (("fprop", ACTIVATION), ("dgrad", GRADIENT), ("wgrad", GRADIENT))
    }
    assert len(region.sites) == 9
    assert not any(s.guess for s in region.sites)
    assert region.uncompiled == region.skipped == ()
    assert "(training, inside of invoke_subgraph), 2 times" in str(region)


def test_a_region_of_one_layer_is_that_layer() -> None:
    class Layer(torch.nn.Linear):
        @torch.compiler.nested_compile_region
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), Layer(16, 16), Layer(16, 16))
    report = nmcompile.explain(model, X)
    assert {s.module for s in report.sites} == {"0", "{1..2}"}


def test_a_rule_decides_all_modules_of_a_region_or_is_refused() -> None:
    def policy(module: str) -> dict[str, Any]:
        rule = {"module": module, "role": "fprop", "prune": "activation", "format": "2:4"}
        return {"schema": 1, "rule": [{**rule, "method": "mse"}]}

    report = nmcompile.explain(network(Block), X, policy=policy("*.up"))
    assert [s.module for s in report.sites if s.pruned] == ["{0..1}.up"]
    with pytest.raises(PolicyError, match="nested_compile_region away"):
        nmcompile.explain(network(Block), X, policy=policy("1.up"))


def test_layers_that_nothing_tells_apart_are_dense_under_rules_for_modules() -> None:
    @torch.compiler.nested_compile_region
    def region(x: Tensor, layer: torch.nn.Module) -> Tensor:
        return x + layer(x).tanh()

    model = network(Plain)

    def run(x: Tensor) -> Tensor:
        return model[2](region(region(x, model[0]), model[1]))

    assert all(s.pruned for s in nmcompile.explain(run, X).sites)
    named = {"module": "*.up", "prune": "activation", "role": "fprop", "format": "2:4"}
    policy = {"schema": 1, "rule": [{**named, "method": "mse"}]}
    with pytest.warns(NMWarning, match="nothing says of which layers"):
        report = nmcompile.explain(run, X, policy=policy)
    assert not any(s.pruned for s in report.sites)


def pruned_roles(report: Any) -> set[tuple[str, str]]:
    """Module and role of each pruned product; each is listed once."""
    found = [(s.module, str(s.role)) for s in report.sites if s.pruned]
    assert len(found) == len(set(found))
    return set(found)


ROLES = ("fprop", "dgrad", "wgrad")


def test_branches_are_pruned_in_their_true_roles_and_know_their_modules() -> None:
    report = nmcompile.explain(network(Branch), X)
    inside = {(f"{block}.{name}", role) for block in "01" for name in "ab" for role in ROLES}
    assert pruned_roles(report) == {*inside, *(("2", role) for role in ROLES)}
    assert not any(s.guess for s in report.sites)
    dense = {"schema": 1, "extends": "full", "rule": [{"module": "1.a", "dense": True}]}
    rest = {(module, role) for module, role in inside if module != "1.a"}
    assert pruned_roles(nmcompile.explain(network(Branch), X, policy=dense)) >= rest
    assert not pruned_roles(nmcompile.explain(network(Branch), X, policy=dense)) & (inside - rest)


def test_what_runs_twice_is_not_pruned_at_random_or_exactly() -> None:
    advice = 'take backward = "exact" out', 'would draw another mask (mvue): write method = "mse"'
    for extra, text in zip(({"backward": "exact"}, {"method": "mvue"}), advice, strict=True):
        rule = {"role": "fprop", "prune": "activation", "format": "2:4", "method": "mse", **extra}
        report = nmcompile.explain(network(Branch), X, policy={"schema": 1, "rule": [rule]})
        assert {s.module for s in report.sites if s.pruned} == {"2"}
        assert all(text in s.reason for s in report.sites if s.has(Code.IN_SUBGRAPH))
        assert sum(s.has(Code.IN_SUBGRAPH) for s in report.sites) == 4


@pytest.mark.parametrize("loop", [Map, While])
def test_the_last_layer_of_a_loop_is_known_in_its_backward(loop: type[torch.nn.Module]) -> None:
    """Its product is not computed again there, so that no forward product tells."""
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        report = nmcompile.explain(loop(), X)
    assert pruned_roles(report) == {(m, role) for m in ("up", "down") for role in ROLES}


class Parallel(torch.nn.Module):
    """Layers of equal sizes with one input, of which ``c`` and ``d`` have one gradient as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (torch.nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        layers = lambda x: self.a(x) * self.b(x).sin() + self.c(x) + self.d(x)  # noqa: E731
        slices: Tensor = map_over(layers, x)
        return slices


def test_layers_with_one_input_are_told_apart_in_a_backward() -> None:
    slices = X.reshape(3, -1, 16)
    report = nmcompile.explain(Parallel(), slices)
    known = {(m, role) for m in "abcd" for role in ROLES} - {("c", "wgrad"), ("d", "wgrad")}
    found = [(s.module, str(s.role)) for s in report.sites if s.pruned]
    assert sorted(found) == sorted([("", "wgrad"), ("", "wgrad"), *known])
    named = {"schema": 1, "extends": "full", "rule": [{"module": "c", "dense": True}]}
    with pytest.warns(NMWarning, match="nothing says of which layers"):
        report = nmcompile.explain(Parallel(), slices, policy=named)
    assert pruned_roles(report) == {(m, role) for m, role in known if m != "c"}


@pytest.mark.parametrize("loop", [Map, Scan, While])
def test_loops_are_pruned_in_their_true_roles(loop: type[torch.nn.Module]) -> None:
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        report = nmcompile.explain(loop(), X)
        named = {"module": "up", "role": "dgrad", "prune": "gradient", "format": "2:4"}
        policy = {"schema": 1, "rule": [{**named, "method": "mvue"}]}
        if loop is not Scan:
            assert pruned_roles(nmcompile.explain(loop(), X, policy=policy)) == {("up", "dgrad")}
        else:  # nothing says of which layers it is
            with pytest.warns(NMWarning, match="nothing says of which layers"):
                assert not pruned_roles(nmcompile.explain(loop(), X, policy=policy))
    assert len([s for s in report.sites if s.pruned]) == len(report.sites) == 6
    assert sorted(str(s.role) for s in report.sites) == sorted(ROLES * 2)
    assert {g.times for g in report.graphs if g.operator} == {None if loop is While else 3}


def test_graphs_of_loops_inside_of_branches_stay_dense() -> None:
    inner = calling(
        lambda g, n: g.call_function(ops.cond, (n["x"], n["f"], n["f"], (n["x"], n["w"]))), f=two
    )
    outer = calling(lambda g, n: [call(g, n["f"], *(n[k] for k in "xwd"))], f=inner)
    known = found(outer), kinds_in(outer.graph, kind_of_input)[1][inner.f]
    assert [not_planned(inside) is None for inside in known] == [True, False]


def test_a_backward_that_multiplies_what_its_forward_did_not_is_noticed() -> None:
    def forward(x: Tensor, w: Tensor) -> Any:
        return [torch.ops.aten.mm.default(x, w)]

    def again(x: Tensor, w: Tensor, d: Tensor) -> Any:
        return [torch.ops.aten.mm.default(d, torch.ops.aten.mm.default(x, w))]

    def other(x: Tensor, w: Tensor, d: Tensor) -> Any:
        return [torch.ops.aten.mm.default(d, torch.ops.aten.mm.default(w, x))]

    def write(g: fx.Graph, n: dict[str, fx.Node]) -> Any:
        x, w, d = (n[k] for k in "xwd")
        one = g.call_function(ops.cond, (x, n["f"], n["f"], (x, w)))
        two = g.call_function(ops.cond, (x, n["b"], n["b"], (x, w, d)))
        one.meta["seq_nr"] = two.meta["seq_nr"] = 1
        return [one, two]

    assert found(calling(write, f=forward, b=again)).complete
    assert not found(calling(write, f=forward, b=other)).complete
    assert not found(calling(write, f=forward, b=other), "b").complete


def test_a_checkpointed_region_draws_no_forward_masks() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.a, x, use_reentrant=False)
            return checkpoint(self.b, x, use_reentrant=False)

    rule = {"role": "fprop", "prune": "activation", "format": "2:4", "method": "mvue"}
    report = nmcompile.explain(Net(), X, policy={"schema": 1, "rule": [rule]})
    assert not any(s.pruned for s in report.sites)
    assert all(pruned_roles(nmcompile.explain(Net(), X, policy="activations")))

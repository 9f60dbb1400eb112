"""Every fact holds where its pass has run, and can fail: on a plan or a graph broken by hand."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.compressed import cusparselt
from nmcompile.execution.choose import Execution
from nmcompile.gemm import OperandKind, Role
from nmcompile.graph.aten import argument, set_argument
from nmcompile.graph.insert import Inserter
from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.ops.schemas import Compress, CompressLike, KeepMask, Mm, Prune, UnpackMask
from nmcompile.passes import facts
from nmcompile.passes.pipeline import JOINT, POST_GRAD
from nmcompile.passes.plan import Kernels, Plan
from nmcompile.passes.run import run
from nmcompile.reason import Code, Reason
from tests.passes.plans import (
    SPARSE,
    SPARSE_EXACT,
    layers,
    node,
    plan_of,
    pointwise_convolution,
    ran,
)
from tests.passes.regions import caller

aten, nm = torch.ops.aten, torch.ops.nm

Make, Fact, Break = Callable[[], Any], Callable[[Any], Any], Callable[[Any], None]
#: A state in which a fact holds, the fact, what breaks it, and the sentence that it then yields.
CASES: list[tuple[Make, Fact, Break, str]] = []


def case(make: Make, fact: Fact, text: str) -> Callable[[Break], Break]:
    """The decorated function breaks the fact in what ``make`` makes; ``text`` says so then."""

    def add(break_it: Break) -> Break:
        CASES.append((make, fact, break_it, text))
        return break_it

    return add


def simulated() -> Plan:
    return ran(layers("full"))


def exact() -> Plan:
    return ran(layers("full-exact"))


def sparse() -> Plan:
    return ran(layers(SPARSE))


def sparse_exact() -> Plan:
    return ran(layers(SPARSE_EXACT))


def convolution() -> Plan:
    return ran(pointwise_convolution("full"))


def sparse_convolution() -> Plan:
    return ran(pointwise_convolution(SPARSE))


def site(plan: Plan, role: Role, last: bool = False) -> int:
    """The first (or last) product of a role."""
    sites = [d.site for d in plan.decisions if d.gemm.role is role]
    return sites[-1 if last else 0]


def move(plan: Plan, number: int, to: fx.Node) -> None:
    """Say that a product stands elsewhere."""
    plan.products[number] = replace(plan.products[number], node=to)


def unprune(plan: Plan, number: int) -> None:
    """Let a simulated product read again what it read before."""
    product, result = plan.products[number], plan.results[number]
    assert product.operand is not None
    set_argument(product.node, product.operand.arg, result.original)


# -- found and decided ---------------------------------------------------------------------------


@case(simulated, facts.products_found, "mm_default is a product that nobody found")
def add_a_product(plan: Plan) -> None:
    mm = node(plan, aten.mm.default)
    with plan.graph.inserting_after(mm):
        plan.graph.call_function(aten.mm.default, mm.args)


@case(simulated, facts.products_found, "mm is a product that nobody found")
def forget_a_product(plan: Plan) -> None:
    del plan.gemms[0], plan.products[0]


@case(simulated, facts.all_decided, "6 products have 5 decisions")
def forget_a_decision(plan: Plan) -> None:
    plan.decisions = plan.decisions[:-1]


@case(simulated, facts.all_decided, "6 products have 6 decisions")
def decide_out_of_order(plan: Plan) -> None:
    plan.decisions = plan.decisions[::-1]


@case(simulated, facts.all_decided, "site 0 is simulate with None")
def simulate_nothing(plan: Plan) -> None:
    plan.decisions = (replace(plan.decisions[0], pruning=None), *plan.decisions[1:])


@case(simulated, facts.all_decided, "site 0 is dense with Pruning")
def prune_a_dense_product(plan: Plan) -> None:
    dense = replace(plan.decisions[0], execution=Execution("dense"))
    plan.decisions = (dense, *plan.decisions[1:])


@case(simulated, facts.all_decided, "site 0 is pruned by a guess: nobody knows")
def prune_by_a_guess(plan: Plan) -> None:
    guess = replace(plan.gemms[0], guess=Reason(Code.NO_FORWARD, "nobody knows"))
    plan.gemms[0] = guess
    plan.decisions = (replace(plan.decisions[0], gemm=guess), *plan.decisions[1:])


@case(simulated, facts.all_decided, "site 0 is not in the graph")
def leave_the_graph(plan: Plan) -> None:
    move(plan, 0, fx.Graph().call_function(aten.mm.default, ()))


# -- one node for each product -------------------------------------------------------------------


@case(convolution, facts.one_role_a_node, "computes 2 products, and site 1 is pruned")
def join_both_gradients(plan: Plan) -> None:
    move(plan, site(plan, Role.DGRAD), plan.products[site(plan, Role.WGRAD)].node)


@case(sparse_convolution, facts.forward_is_matmul, "site 0 runs sparse and is aten.reshape.default")
def run_a_view_sparse(plan: Plan) -> None:
    move(plan, 0, node(plan, aten.reshape.default))


@case(sparse_convolution, facts.backward_is_matmul, "runs sparse and is aten.reshape.default")
def run_a_view_of_a_gradient_sparse(plan: Plan) -> None:
    move(plan, site(plan, Role.DGRAD), node(plan, aten.reshape.default))


# -- pruned operands -----------------------------------------------------------------------------


@case(simulated, facts.forward_pruned, "mm of site 0 reads the unpruned activation")
def read_the_activation(plan: Plan) -> None:
    unprune(plan, 0)


@case(simulated, facts.forward_pruned, "mm_1 of site 1 reads the unpruned activation")
def read_what_follows_from_a_pruned_operand(plan: Plan) -> None:
    """relu(prune(x) w^T) is no pruned operand."""
    unprune(plan, 1)


@case(exact, facts.forward_pruned, "site 1 is not pruned")
def lose_a_result(plan: Plan) -> None:
    del plan.results[1]


@case(sparse, facts.forward_pruned, "site 0 runs sparse and is aten.relu.default")
def run_relu_sparse(plan: Plan) -> None:
    move(plan, 0, node(plan, aten.relu.default))


@case(simulated, facts.backward_pruned, "reads the unpruned gradient")
def read_the_gradient(plan: Plan) -> None:
    unprune(plan, site(plan, Role.DGRAD, last=True))


@case(convolution, facts.backward_pruned, "of site 2 reads the unpruned gradient")
def read_the_gradient_of_an_image(plan: Plan) -> None:
    unprune(plan, site(plan, Role.WGRAD))


@case(sparse_exact, facts.backward_pruned, "site 3 is not pruned")
def lose_a_result_of_the_backward(plan: Plan) -> None:
    del plan.results[3]


# -- what else was done for them -----------------------------------------------------------------


@case(exact, facts.gradients_masked, "the gradient of site 0 is masked by gt_scalar")
@case(sparse_exact, facts.gradients_masked, "the gradient of site 0 is masked by gt_scalar")
def mask_by_comparison(plan: Plan) -> None:
    """Where the masked gradient itself is positive: it follows from a mask, and is none."""
    first = plan.masked[0]
    insert = Inserter(plan.graph)
    with insert.before(first.next):
        positive = insert.call(first, aten.gt.Scalar, plan.masked[1], 0)
        plan.masked[0] = insert.masked(first, positive, first)


@case(sparse, facts.one_compression_a_tensor, "is compressed 2 times")
def compress_again(plan: Plan) -> None:
    first = node(plan, Compress.operator)
    with plan.graph.inserting_after(first):
        plan.graph.node_copy(first)


# -- kernels -------------------------------------------------------------------------------------


def compressed(
    x: torch.Tensor, method: str = "mse", devices: tuple[str, ...] = ("cpu",)
) -> Kernels:
    """A graph that compresses ``x``, after the passes."""

    def f(x: torch.Tensor) -> Any:
        seed = torch.ones(1, dtype=torch.int64)
        return nm.compress(x, seed, [0], [1], 2, 4, method, "row_major")

    kernels = Kernels(make_fx(f, tracing_mode="fake")(x).graph, devices)
    run(POST_GRAD, kernels, "graph")
    return kernels


def generated() -> Kernels:
    kernels = compressed(torch.randn(8, 32).bfloat16())
    assert FusedCompress.nodes(kernels.graph)
    return kernels


def pruned() -> Kernels:
    """A graph that prunes a tensor, with kernels for none of its devices."""
    f = lambda x: nm.prune(x, None, 0, 2, 4, [1], "mse")  # noqa: E731
    return Kernels(make_fx(f, tracing_mode="fake")(torch.randn(8, 8)).graph, ())


def calls_a_region() -> Kernels:
    return Kernels(caller(lambda x, w: (x + w,)).graph)


@case(calls_a_region, facts.results_own_memory, "getitem shares memory with x")
def return_an_input(kernels: Kernels) -> None:
    (region,) = kernels.graph.owning_module.children()
    graph: Any = region.graph
    graph.output_node().args = ((graph.find_nodes(op="placeholder")[0],),)


def pruned_freely() -> Kernels:
    kernels = pruned()
    run(POST_GRAD, kernels, "graph")
    return kernels


@case(pruned_freely, facts.layouts_free, "asks for the strides that were traced")
def prune_as_traced(kernels: Kernels) -> None:
    kernels.graph = pruned().graph


@case(pruned, facts.one_read_for_all_masks, "is read by prune and prune_1")
def prune_again(kernels: Kernels) -> None:
    (first,) = Prune.nodes(kernels.graph)
    with kernels.graph.inserting_after(first):
        again = kernels.graph.node_copy(first)
    replace(Prune.of(first), dims=[0]).write(again)


def saved() -> Kernels:
    """A kernel's input is saved at the places that the kernel keeps."""

    def f(x: torch.Tensor) -> Any:
        (packed,) = nm.compress(x.tanh(), None, [0], [1], 2, 4, "mse", "row_major")
        return packed, nm.compress_like(x, packed, "row_major")

    x = torch.zeros(8, 32, dtype=torch.bfloat16)
    kernels = Kernels(make_fx(f, tracing_mode="fake")(x).graph, ("cpu",))
    run(POST_GRAD, kernels, "graph")
    return kernels


@case(saved, facts.kept_places_in_kernels, "could be written by compress_rows_mse_2_4_tanh")
def read_an_input_again(kernels: Kernels) -> None:
    (fused,) = FusedCompress.nodes(kernels.graph)
    (x,) = FusedCompress.of(fused).inputs
    packed = next(user for user in fused.users if user.args[1] == 0)
    with kernels.graph.inserting_after(packed):
        kernels.graph.call_function(CompressLike.operator, (x, packed, "row_major"))


def unpacked() -> Kernels:
    """A product that reads what is computed from a packed operand."""

    def f(gradient: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        doubled = nm.decompress(packed, 64, 32, "row_major") * 2.0
        result: torch.Tensor = nm.mm(gradient, doubled, 64, "row_major", None, False, True)
        return result

    tensors = (torch.zeros(64, 36, dtype=torch.bfloat16), torch.zeros(64, 18, dtype=torch.bfloat16))
    return Kernels(make_fx(f, tracing_mode="fake")(*tensors).graph, ("cpu",))


def computed() -> Kernels:
    kernels = unpacked()
    run(POST_GRAD, kernels, "graph")
    return kernels


@case(computed, facts.unpacked_in_kernels, "is computed from operands that are unpacked for it")
def unpack_for_inductor(kernels: Kernels) -> None:
    kernels.graph = unpacked().graph


@case(generated, facts.kernels_generated, "compress_default of torch.bfloat16 on cpu could be")
def compress_what_no_kernel_does(kernels: Kernels) -> None:
    fused = FusedCompress.nodes(kernels.graph)[0]
    x, seed = FusedCompress.of(fused).inputs[0], FusedCompress.of(fused).seed
    with kernels.graph.inserting_after(fused):
        kernels.graph.call_function(
            Compress.operator, (x, seed, [0], [1], 2, 4, "mse", "row_major")
        )


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fact", "break_it", "text"),
    CASES,
    ids=[f"{c[2].__name__}-{c[0].__name__}" for c in CASES],
)
def test_a_fact_holds_and_fails_when_it_is_broken(
    make: Make, fact: Fact, break_it: Break, text: str
) -> None:
    state = make()
    assert [*fact(state)] == []
    break_it(state)
    sentences = [*fact(state)]
    assert sentences
    assert text in sentences[0]


def test_every_fact_is_broken_here_and_left_by_a_pass() -> None:
    ours = [
        f
        for name, f in inspect.getmembers(facts, inspect.isfunction)
        if not name.startswith("_") and f.__module__ == facts.__name__
    ]
    below = {facts.static_kernels_lowered, facts.static_products_lowered}
    broken = {fact for _, fact, _, _ in CASES} | below
    assert set(ours) == broken
    assert set(ours) == {fact for step in (*JOINT, *POST_GRAD) for fact in step.leaves}


@pytest.mark.parametrize(
    "make", [simulated, exact, sparse, sparse_exact, convolution, sparse_convolution]
)
def test_all_facts_of_the_joint_graph_hold_at_its_end(make: Callable[[], Plan]) -> None:
    plan = make()
    left = [fact for step in JOINT for fact in step.leaves]
    assert {fact.__name__: [*fact(plan)] for fact in left} == {fact.__name__: [] for fact in left}


def test_the_plans_are_about_something() -> None:
    """No fact holds here because there is nothing that it speaks of."""
    assert {d.execution.how for d in simulated().decisions} == {"simulate"}
    assert {d.gemm.role for d in simulated().decisions} == set(Role)
    assert {n.target for n in _masks(exact())} == {KeepMask.operator}
    assert {n.target for n in _masks(sparse_exact())} == {UnpackMask.operator}
    assert [d.execution.how for d in sparse_convolution().decisions] == ["sparse"] * 3
    kinds = [d.pruning.operand.kind for d in convolution().decisions if d.pruning]
    assert kinds == [OperandKind.ACTIVATION, OperandKind.GRADIENT, OperandKind.GRADIENT]
    assert len(Compress.nodes(sparse().graph)) < len(sparse().decisions)  # some are shared


def _masks(plan: Plan) -> list[fx.Node]:
    assert set(plan.masked) == {0, 1}
    conditions = [argument(n, "condition") for n in plan.masked.values()]
    return [c if c.target is not aten.permute.default else c.all_input_nodes[0] for c in conditions]


def test_channel_groups_are_reshaped_around_the_mask() -> None:
    """Groups of 6 channels: the product reads a view of the pruned operand."""

    def step(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.conv2d(x, w, groups=2)

    plan = ran(plan_of(step, torch.randn(2, 12, 4, 4), torch.randn(4, 6, 1, 1)))
    assert argument(plan.products[0].node, "input").target is aten.reshape.default
    assert [*facts.forward_pruned(plan)] == []
    assert node(plan, Prune.operator)


@pytest.mark.parametrize(
    ("x", "method", "devices"),
    [
        (torch.randn(8, 32), "mse", ("cpu",)),  # float32
        (torch.randn(32, 8).bfloat16().t(), "mse", ("cpu",)),  # column by column
        (torch.randn(8, 32).bfloat16(), "uniform", ("cpu",)),
        (torch.randn(8, 32).bfloat16(), "mse", ("cuda",)),
    ],
)
def test_what_no_kernel_takes_contradicts_nothing(
    x: torch.Tensor, method: str, devices: tuple[str, ...]
) -> None:
    kernels = compressed(x, method, devices)
    assert Compress.nodes(kernels.graph)
    assert [*facts.kernels_generated(kernels)] == []


def test_a_product_of_the_library_alone_is_lowered() -> None:
    """Fake CUDA tensors, as below."""
    graph, mode = fx.Graph(), FakeTensorMode()
    packed, dense = graph.placeholder("packed"), graph.placeholder("dense")
    with mode:
        packed.meta["val"] = torch.empty(64, 36, dtype=torch.bfloat16, device="cuda")
        dense.meta["val"] = torch.empty(64, 8, dtype=torch.bfloat16, device="cuda")
        product = Inserter(graph).op(dense, Mm(packed, dense, 64, "cusparselt_sm90"))
        graph.output(product)
    kernels = Kernels(graph, lower=False)
    assert [*facts.static_products_lowered(kernels)] == []
    kernels.lower = True
    text = f"{product} is cuSPARSELt's product alone and is called by an operator"
    assert [*facts.static_products_lowered(kernels)] == [text]


def test_a_kernel_that_inductor_could_launch_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake CUDA tensors: an operator with known sizes is left where ``lower`` asks for none."""
    monkeypatch.setattr(cusparselt, "reads", lambda *_: True)
    graph, mode = fx.Graph(), FakeTensorMode()
    x = graph.placeholder("x")
    with mode:
        x.meta["val"] = torch.empty(64, 128, dtype=torch.bfloat16, device="cuda")
        insert = Inserter(graph)
        every = insert.op(x, Compress(x, None, [0], [1], 2, 4, "mse", "cusparselt_sm90"))
        graph.output(insert.call(x, operator.getitem, every, 0))
        kernels = Kernels(graph, lower=False)
        run(POST_GRAD, kernels, "graph")
    (fused,) = FusedCompress.nodes(graph)
    assert [*facts.static_kernels_lowered(kernels)] == []
    kernels.lower = True
    text = f"{fused} has known sizes on CUDA and is launched by an operator"
    assert [*facts.static_kernels_lowered(kernels)] == [text]
    monkeypatch.setattr(cusparselt, "reads", lambda *_: False)  # the library packs it again
    assert [*facts.static_kernels_lowered(kernels)] == []

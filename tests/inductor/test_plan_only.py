"""Planning without compiling: the graphs, the report and a run that builds no kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from nmcompile import Policy
from nmcompile.codegen.cpu import kernel as cpu
from nmcompile.inductor.interpreter import PlannedInterpreter
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import plan_only

X = torch.randn(4, 16)


def layer() -> tuple[fx.GraphModule, list[Tensor]]:
    """A linear layer as a graph, and its inputs."""
    gm = fx.symbolic_trace(lambda x, w, b: torch.nn.functional.linear(x, w, b))
    return gm, [X, nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(8))]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(kind: object) -> None:
        raise AssertionError(f"{kind} is built")

    monkeypatch.setattr(cpu, "_load", build)
    monkeypatch.setattr(cpu, "_kernels", {})


def test_forward_and_backward_are_planned_at_once(no_kernels: None) -> None:
    gm, inputs = layer()
    planned = plan_only(gm, inputs, Settings(Policy.recipe("full")))
    (report,) = planned.reports
    assert [str(s.role) for s in report.sites] == ["fprop", "wgrad"]
    forward, backward = planned.graphs
    for graph in (forward, backward):
        assert graph.find_nodes(op="call_function", target=torch.ops.nm.prune.default)


def test_it_runs_as_if_the_policy_were_dense(no_kernels: None) -> None:
    gm, inputs = layer()
    planned = plan_only(gm, inputs, Settings(Policy.recipe("full")))
    y = planned.run(*inputs)
    x, w, b = inputs
    torch.testing.assert_close(y, torch.nn.functional.linear(x, w, b))
    y.square().sum().backward()
    torch.testing.assert_close(w.grad, 2 * y.detach().t() @ x)
    torch.testing.assert_close(b.grad, 2 * y.detach().sum(0))


def test_without_gradients_there_is_one_graph(no_kernels: None) -> None:
    gm, inputs = layer()
    with torch.no_grad():
        planned = plan_only(gm, inputs, Settings(Policy.recipe("full")))
    assert len(planned.graphs) == 1
    assert not planned.reports[0].training


def test_another_interpreter_runs_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "kernel", lambda kind: None)  # the oracle
    gm, inputs = layer()
    policy = Policy.recipe("activations")
    planned = plan_only(gm, inputs, Settings(policy), PlannedInterpreter)
    y = planned.run(*inputs)
    x, w, b = inputs
    pruned = torch.ops.nm.prune(x, None, 0, 2, 4, [1], "mse")
    torch.testing.assert_close(y, torch.nn.functional.linear(pruned, w, b))


def test_the_kernels_of_a_gpu_are_listed_and_the_graphs_stay_as_they_are() -> None:
    gm, inputs = layer()
    policy = Policy(extends="full", execution="sparse")
    x, w, b = (x.detach().bfloat16() for x in inputs)
    planned = plan_only(gm, [x, nn.Parameter(w), nn.Parameter(b)], Settings(policy))
    names = ["compress_rows_mse_2_4_copy", "compress_columns_mvue_2_4_copy"]
    assert [spec.name for spec in planned.kernels()] == names
    for graph in planned.graphs:
        assert graph.find_nodes(op="call_function", target=torch.ops.nm.compress.default)


def test_so_are_masks_of_sizes_that_are_known() -> None:
    planned = plan_only(*layer(), Settings(Policy.recipe("full")))
    names = ["prune_runs_mse_2_4", "prune_across_mvue_2_4"]
    assert [spec.name for spec in planned.kernels()] == names


def test_results_on_the_meta_device_are_no_constants() -> None:
    gm, inputs = layer()
    planned = plan_only(gm, [x.to("meta") for x in inputs], Settings(Policy.recipe("full")))
    forward = planned.graphs[0]
    assert forward.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)

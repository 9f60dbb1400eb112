"""What fuzzing found in the package: one small test for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nmcompile
from fuzzing.execute import PlannedNetwork, run
from fuzzing.network import Program
from nmcompile import Policy, Rule
from nmcompile.masks import reference

GRADIENTS = Policy(rules=[Rule(prune="gradient", format="2:4", method="mse")])


def rows(function: Callable[..., Any], *args: Tensor) -> list[tuple[str, str, str]]:
    """(op, role, pruned) of every product, in graph order."""
    report = nmcompile.explain(function, *args, policy=GRADIENTS)
    return [(str(s.op), str(s.role), str(s.pruned)) for s in report.sites]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.tensor([[0.5, -1.0]] * 8)


def test_a_constant_in_the_code_is_no_weight() -> None:
    x = torch.randn(8, 8, requires_grad=True)
    assert rows(Constant(), x) == [("matmul", "fprop", "None"), ("matmul", "dgrad", "None")]


class FrozenProduct(nn.Module):
    """A product that no gradient flows through, right after one that has a weight gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        with torch.no_grad():
            similarity = x @ x.mT
        return y.sum() + similarity.sum()


def test_a_frozen_product_does_not_hide_the_forward_of_a_gradient() -> None:
    fprop = ("linear", "fprop", "None")
    wgrad = ("linear", "wgrad", "gradient")
    assert rows(FrozenProduct(), torch.randn(32, 8)) == [
        fprop,
        ("matmul", "fprop", "None"),
        wgrad,
    ]


def test_exact_backward_reaches_the_gradient_behind_a_frozen_product() -> None:
    rule = Rule(prune="activation", format="2:4", role="fprop", backward="exact")
    sites = nmcompile.explain(
        FrozenProduct(), torch.randn(32, 8), policy=Policy(rules=[rule])
    ).sites
    assert "reads the pruned activation" in sites[-1].reason


class OuterProduct(nn.Module):
    """Inductor multiplies element by element in the forward; the backward has two products."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x[:, :, :1], x[:, :1]).tanh()


def test_the_gradients_of_an_outer_product_are_no_weight_gradients() -> None:
    x = torch.randn(6, 4, 8, requires_grad=True)
    assert {op for op, _, _ in rows(OuterProduct(), x)} == {"matmul"}


class FusedAttention(nn.Module):
    """Inductor fuses the attention; what it returns in the backward has other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 4)

    def attend(self, x: Tensor) -> Tensor:
        return self.last((torch.softmax(x @ x.mT * 0.3, -1) @ x).relu())

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.attend, self.first(x), use_reentrant=False)


def test_explain_runs_what_reads_a_fused_attention() -> None:
    model = FusedAttention()
    x = torch.randn(3, 4, 3, 5).to(memory_format=torch.channels_last)
    planned = PlannedNetwork(Program(model, [x]), Policy.recipe("dense"))
    for found, expected in zip(planned.run(), run(Program(model, [x])), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("execution", ["simulate", "sparse"])
def test_a_transposable_mask_of_ragged_tiles_masks_the_exact_gradient(execution: str) -> None:
    model, x = nn.Linear(5, 3, bias=False, dtype=torch.float64), torch.randn(6, 5).double()
    exact = {"role": "fprop", "backward": "exact", "execution": execution}
    rule = Rule(prune="weight", format="2:4", method="transposable", **exact)
    _, dw = PlannedNetwork(Program(model, [x]), Policy(rules=[rule])).run()
    keep = reference.prune_and_mask(model.weight, None, 0, 2, 4, (0, 1), "transposable")[1]
    assert dw is not None
    assert torch.equal(dw != 0, keep)


class Tied(nn.Module):
    """A layer and the product with its own weight, on folded images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 16, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) @ self.fc.weight + self.fc(x.tanh()) @ self.fc.weight


def test_symbolic_sizes_written_in_two_ways_are_one_size() -> None:
    x = torch.randn(3, 4, 3, 5).to(memory_format=torch.channels_last).double().requires_grad_()
    rule = Rule(prune="activation", format="2:4", role="fprop", backward="exact")
    model, results = Tied(), []
    for dynamic in (False, True):
        program = Program(model, [x])
        results.append(PlannedNetwork(program, Policy(rules=[rule]), dynamic).run())
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


class OneTerm(nn.Module):
    """Two products of one column; Inductor writes that of the bare weight without a product."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 8, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(8, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.fc(x), x @ self.weight.t()


def test_a_gradient_whose_forward_was_written_out_belongs_to_no_other_product() -> None:
    x = torch.randn(8, 1, dtype=torch.float64)
    sites = nmcompile.explain(OneTerm(), x, policy=GRADIENTS).sites
    assert [(s.module, str(s.role)) for s in sites] == [
        ("fc", "fprop"),
        ("", "wgrad"),
        ("fc", "wgrad"),
    ]


class OuterOfALayer(nn.Module):
    """Every batch has one row: the sum over the batch is the bias's gradient, and no weight's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 20, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y @ torch.softmax(y.mT @ y, -1)


def test_the_gradients_of_a_written_product_of_activations_are_no_weight_gradients() -> None:
    x = torch.randn(3, 1, 20, dtype=torch.float64, requires_grad=True)
    found = rows(OuterOfALayer(), x)
    assert {role for op, role, _ in found if op == "matmul"} == {"fprop", "dgrad"}
    assert (
        found.count(("linear", "wgrad", "None")) + found.count(("linear", "wgrad", "gradient")) == 1
    )


class Frozen(nn.Module):
    """PyTorch expands the weight to as many matrices as the part of the batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.split(2)[-1] @ self.weight.t()


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_weight_expanded_to_the_size_of_an_activation_is_a_weight(dynamic: bool) -> None:
    planned = PlannedNetwork(
        Program(Frozen(), [torch.randn(6, 8, 5).mT]), Policy.recipe("dense"), dynamic
    )
    planned.run()
    (site,) = planned.sites
    assert (str(site.op), str(site.operands[1])) == ("linear", "weight")

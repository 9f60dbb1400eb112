"""Frames in which an input may be a gradient: nothing is pruned there, and a warning says why."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nmcompile
from nmcompile import NMWarning, Policy
from nmcompile.inductor.plan_only import plan_only
from nmcompile.reason import Code

#: Also products of two activations, which those of gradients seem to be.
POLICY = Policy(
    extends="full",
    rules=[{"op": "matmul", "role": "fprop", "prune": "activation", "format": "2:4"}],
)
W = nn.Parameter(torch.randn(16, 16))
X = torch.randn(12, 16, requires_grad=True)


def compiled(f: Callable[..., Any]) -> Any:
    return torch.compile(f, backend="nm_sparse", options={"policy": POLICY})


def guesses() -> list[Code | None]:
    """Of the products of the newest compilation; none of those with a guess may be pruned."""
    sites = nmcompile.last_report().sites
    assert all(s.pruned is None for s in sites if s.guess)
    return [s.guess and s.guess.code for s in sites]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on generated code."""

    def planned(gm: Any, inputs: Any, settings: Any) -> Any:
        plan = plan_only(gm, inputs, settings)
        return plan.run, plan.reports

    monkeypatch.setattr("nmcompile.backend.compile_graph", planned)


class Product(torch.autograd.Function):
    """A linear layer that Dynamo cannot trace in one piece."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


def test_a_function_that_is_compiled_in_pieces() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(lambda x: Product.apply(x, W).sum().backward())(X)
    ours = [str(w.message) for w in caught if issubclass(w.category, NMWarning)]
    assert len(ours) == 2
    assert "forward of the autograd.Function Product" in ours[0]
    assert "Product.backward runs inside of the autograd engine" in ours[1]
    assert guesses() == [Code.IN_FUNCTION, Code.IN_ENGINE, Code.IN_ENGINE]


def test_a_function_that_is_compiled_whole_has_roles() -> None:
    class Whole(Product):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w.t()

    compiled(lambda x: Whole.apply(x, W))(X).sum().backward()
    assert guesses() == [None] * 3
    assert [str(s.role) for s in nmcompile.last_report().sites] == ["fprop", "dgrad", "wgrad"]


def test_hooks_run_in_the_engine() -> None:
    update = compiled(lambda p: p.grad @ p.grad.t() @ p)
    w = nn.Parameter(W.detach().clone())

    def after(p: Tensor) -> None:
        update(p)

    w.register_post_accumulate_grad_hook(after)
    x = X.detach().requires_grad_()
    x.register_hook(compiled(lambda g: g @ g.t() @ g))
    with pytest.warns(NMWarning, match="inside of the autograd engine"):
        (x @ w).sum().backward()
    assert guesses() == [Code.IN_ENGINE] * 2  # of either, whose reports are two


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_is_a_forward(reentrant: bool) -> None:
    layer = nn.Linear(16, 16)
    block = compiled(lambda x: layer(x).tanh())
    checkpoint(block, X, use_reentrant=reentrant).sum().backward()
    graphs = nmcompile.last_report().graphs
    assert len(graphs) == (2 if reentrant else 1)  # the forward runs without gradients there
    assert not any(guesses())
    assert nmcompile.last_report().totals.pruned_share == 1.0


@torch.no_grad()
def whitened(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.sub_(g @ g.t() @ g)


class Whitening(torch.optim.Optimizer):
    """As Muon and Shampoo do: products of a parameter's gradient with itself."""

    helper: Any = staticmethod(whitened)

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            self.helper(group["params"], [p.grad for p in group["params"]])


def with_gradient() -> nn.Parameter:
    w = nn.Parameter(torch.randn(16, 16))
    (X @ w).sum().backward()
    return w


def test_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["torch.optim.optimizer"]  # whose name torch.optim gives away
    for when in ("pre", "post"):  # the hooks of kept masks break the graph of a compiled step
        monkeypatch.setattr(module, f"_global_optimizer_{when}_hooks", {})
    step = compiled(Whitening([with_gradient()]).step)
    with pytest.warns(NMWarning, match="depends on the .grad of a parameter"):
        step()
    assert guesses() == [Code.PARAMETER_GRADIENT] * 2
    torch._dynamo.reset()
    optimizer = Whitening([with_gradient()])
    optimizer.helper = compiled(lambda params, grads: [g @ g.t() @ g for g in grads])
    with pytest.warns(NMWarning, match="in the step of the optimizer Whitening"):
        optimizer.step()
    assert guesses() == [Code.IN_OPTIMIZER] * 2
    torch._dynamo.reset()
    w = with_gradient()
    assert w.grad is not None
    with pytest.warns(NMWarning, match="depends on the .grad of a parameter"):
        compiled(whitened)([w], [w.grad])
    assert guesses() == [Code.PARAMETER_GRADIENT] * 2


def test_the_closure_of_an_optimizer_is_a_forward() -> None:
    class Closing(Whitening):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                return closure()

    forward = compiled(lambda x: x @ W)
    Closing([W]).step(lambda: forward(X).sum().backward())
    assert guesses() == [None] * 3


def test_a_dense_policy_is_silent() -> None:
    run = torch.compile(
        lambda x: Product.apply(x, W).sum().backward(),
        backend="nm_sparse",
        options={"policy": "dense"},
    )
    run(X)
    assert all(s.has(Code.RULE_DENSE) for s in nmcompile.last_report().sites)

"""Which random numbers the masks of a compiled model use.

Claims: equal layers draw different masks; two steps differ; ``torch.manual_seed`` reproduces a
run; the seed is drawn in the backward and nothing random is saved from the forward.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nmcompile import Policy, Rule
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import plan_only

WGRAD = Policy(rules=[Rule(prune="gradient", role="wgrad", format="1:2")])


class Twins(nn.Module):
    """Two equal layers with the same input and, through the sum, the same output gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64, bias=False), nn.Linear(16, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def gradients(model: nn.Module, compiled: nn.Module, dy: torch.Tensor) -> list[torch.Tensor]:
    for p in model.parameters():
        p.grad = None
    compiled(torch.eye(16)).backward(dy)
    return [p.grad.clone() for p in model.parameters()]


def test_layers_steps_and_seeds() -> None:
    model, dy = Twins(), torch.randn(16, 64)
    compiled = torch.compile(model, backend="nm_sparse", options={"policy": WGRAD})
    torch.manual_seed(3)
    (a, b), (a2, _) = (gradients(model, compiled, dy) for _ in range(2))
    kept_by_both = ((a != 0) & (b != 0)).float().mean()
    # Half of the elements each; independent masks of |a|-proportional 1:2 share well under half.
    assert not torch.equal(a, b), "two equal layers share their random numbers"
    assert kept_by_both < 0.45
    assert not torch.equal(a, a2), "two steps share their random numbers"
    torch.manual_seed(3)
    again_a, again_b = gradients(model, compiled, dy)
    assert torch.equal(a, again_a)
    assert torch.equal(b, again_b)


def test_fallback_random_reproduces_as_well() -> None:
    model, dy = Twins(), torch.randn(16, 64)
    compiled = torch.compile(
        model, backend="nm_sparse", options={"policy": WGRAD, "fallback_random": True}
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(gradients(model, compiled, dy))
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def partitioned(model: nn.Module, x: torch.Tensor, policy: Policy | str) -> list[torch.fx.Graph]:
    """The forward and the backward graph after partitioning."""
    graphs: list[list[torch.fx.Graph]] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        chosen = policy if isinstance(policy, Policy) else Policy.recipe(policy)
        planned = plan_only(gm, inputs, Settings(chosen))
        graphs.append(planned.graphs)
        return planned.run

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(x).sum().backward()
    (pair,) = graphs
    return pair


def saved_bytes(graph: torch.fx.Graph) -> int:
    (outputs,) = graph.output_node().args
    values = [n.meta["val"] for n in outputs if isinstance(n, torch.fx.Node)]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def names(graph: torch.fx.Graph) -> str:
    return " ".join(str(n.target) for n in graph.nodes if n.op == "call_function")


def test_backward_masks_and_seeds_stay_in_the_backward() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    x = torch.randn(16, 32)
    forward, backward = partitioned(model, x, "gradients")
    assert "nm.prune" not in names(forward)
    assert "rand" not in names(forward)
    assert names(backward).count("nm.prune") == 3
    dense_forward, _ = partitioned(model, x, "dense")
    assert saved_bytes(forward) == saved_bytes(dense_forward)


def test_straight_through_saves_what_dense_saves() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    x = torch.randn(16, 32)
    full, _ = partitioned(model, x, "full")
    dense, _ = partitioned(model, x, "dense")
    assert saved_bytes(full) <= saved_bytes(dense)


def test_a_weight_pruned_for_dgrad_is_not_saved() -> None:
    model, x = nn.Linear(32, 64), torch.randn(16, 32, requires_grad=True)
    policy = Policy(rules=[Rule(prune="weight", role="dgrad", format="2:4")])
    forward, backward = partitioned(model, x, policy)
    assert "nm.prune" not in names(forward)
    assert "nm.prune" in names(backward)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64, bias=False), nn.Tanh(), nn.Linear(64, 16))
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.use_reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.use_reentrant)


def test_checkpointed_regions_recompute_the_same_random_mask() -> None:
    # A random mask in the forward: were it drawn anew in the recomputation, the gradient of the
    # second layer's weight would not be the one of the forward's activation.
    policy = Policy(rules=[Rule(prune="weight", role="fprop", format="2:4", method="uniform")])
    plain, saving = Checkpointed(None), Checkpointed(False)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(8, 16)
    results = []
    for model in (plain, saving):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="nm_sparse", options={"policy": policy})
        torch.manual_seed(5)
        y = compiled(x)
        y.sum().backward()
        results.append([y.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    # Nothing but the seed is saved beyond what a dense checkpointed region saves.
    pruned, dense = (saved_bytes(partitioned(saving, x, p)[0]) for p in (policy, "dense"))
    assert pruned == dense + 8

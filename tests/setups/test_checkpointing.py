"""Activation checkpointing: what is saved, and whether the recomputation draws the same masks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import nmcompile
from nmcompile import Policy, Rule
from tests.setups.steps import MSE, assert_close, compiled, eager_step, loss_of, mlp, one_step

#: A random mask in the forward: drawn anew in the recomputation, gradients would be wrong.
RANDOM = Policy(rules=[Rule(role="fprop", prune="weight", format="2:4", method="uniform")])


def save_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE


def selective() -> Any:
    return create_selective_checkpoint_contexts(save_products)


KINDS: dict[str, Callable[..., Tensor]] = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "non-reentrant": functools.partial(checkpoint, use_reentrant=False),
    "selective": functools.partial(checkpoint, use_reentrant=False, context_fn=selective),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


class Checkpointed(nn.Module):
    """Two checkpointed blocks; ``kind`` None: the same without checkpoints."""

    def __init__(self, kind: str | None, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (KINDS[self.kind](block, x) if self.kind else block(x))
        return x


def model_and_input(kind: str | None) -> tuple[Checkpointed, Tensor]:
    torch.manual_seed(1)
    model = Checkpointed(kind, [mlp(), mlp()])
    return model, torch.randn(8, 16, dtype=torch.float64, requires_grad=True)


def saved_bytes(call: Callable[[], Any]) -> int:
    """Of the distinct tensors that autograd keeps, those that no one else holds included."""
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(found.values())


@pytest.mark.slow
@each_kind
def test_a_checkpointed_model_trains_as_without_and_saves_what_dense_saves(kind: str) -> None:
    model, x = model_and_input(kind)
    plain, _ = model_and_input(None)
    expected = eager_step(plain, x)
    bytes_saved = {}
    for name, policy in {"mse": MSE, "full": "full", "dense": "dense", "inductor": None}.items():
        torch._dynamo.reset()
        own = copy.deepcopy(model)
        run = compiled(own, policy)
        found = one_step(run, own, x)
        if name == "mse":
            assert_close(found, expected)
        bytes_saved[name] = saved_bytes(lambda: loss_of(run(x)))  # noqa: B023
    assert bytes_saved["dense"] == bytes_saved["inductor"]
    assert bytes_saved["mse"] == bytes_saved["full"] == bytes_saved["dense"]


def test_checkpoints_save_memory_under_pruning() -> None:
    saved = {}
    for kind in (None, *KINDS):
        model, x = model_and_input(kind)
        for policy in ("full", "dense"):
            report = nmcompile.explain(model, x, policy=policy)
            saved[kind, policy] = sum(s.bytes for s in report.saved)
    assert all(saved[kind, "full"] == saved[kind, "dense"] for kind in (None, *KINDS))
    assert saved["reentrant", "full"] == saved["non-reentrant", "full"] < saved[None, "full"]
    assert saved["reentrant", "full"] < saved["selective", "full"]


@pytest.mark.parametrize("execution", ["simulate", "sparse"])
@pytest.mark.parametrize("operand", ["activation", "weight"])
def test_an_exact_backward_recomputes_its_masks(operand: str, execution: str) -> None:
    """Saving a product's result says nothing of its masked operand, which wgrad reads here."""
    rule = Rule(role="fprop", prune=operand, format="2:4", backward="exact")
    policy = Policy(rules=[rule], execution=execution, fallback="simulate")
    for kind in KINDS:
        model, x = model_and_input(kind)
        reports = (nmcompile.explain(model, x, policy=p) for p in (policy, "dense"))
        pruned, dense = (sum(s.bytes for s in report.saved) for report in reports)
        assert pruned <= dense


@pytest.mark.slow
@each_kind
def test_the_recomputation_draws_the_same_random_mask(kind: str) -> None:
    results = []
    for chosen in (None, kind):
        torch._dynamo.reset()
        model, x = model_and_input(chosen)
        run = compiled(model, RANDOM)
        torch.manual_seed(3)
        results.append(one_step(run, model, x))
    assert_close(*results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_a_checkpoint_around_compiled_blocks(kind: str) -> None:
    # The recomputation is a second call of the compiled block, with the random state put back.
    results = []
    for chosen in (None, kind):
        torch._dynamo.reset()
        model, x = model_and_input(chosen)
        for block in model.blocks:
            block.compile(backend="nm_sparse", options={"policy": RANDOM})
        torch.manual_seed(3)
        results.append(one_step(model, model, x))
    assert_close(*results)

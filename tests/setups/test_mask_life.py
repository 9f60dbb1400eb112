"""Masks that are kept between steps: training equals a loop that is written by hand."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nmcompile
from nmcompile import Masks, Schedule
from nmcompile.masks import reference
from nmcompile.reason import Code
from tests.setups.steps import compiled

pytestmark = pytest.mark.slow

REFRESH, DECAY = 4, 0.05
TILES = {"prune": "weight", "format": "2:4", "method": "transposable", "role": ["fprop", "dgrad"]}
POLICY = {"refresh": REFRESH, "decay": DECAY, "rule": [TILES]}


class STE(torch.autograd.Function):
    """SR-STE as published: the gradient passes, plus the decay of what the mask leaves out."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(w, mask)
        ctx.decay = decay
        return w * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        w, mask = ctx.saved_tensors
        return grad + ctx.decay * (1 - mask.to(w.dtype)) * w, None, None


def oracle(w: Tensor, dims: tuple[int, ...] = (0, 1), method: str = "transposable") -> Tensor:
    return reference.prune_and_mask(w.detach(), None, 0, 2, 4, dims, method)[1]


class MLP(nn.Module):
    inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).double()

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, w: Callable[[nn.Module], Tensor] = lambda m: m.weight) -> Tensor:
        x = F.gelu(F.linear(x, w(self.up), self.up.bias))
        return F.linear(x, w(self.down), self.down.bias)


class Convolutions(nn.Module):
    inputs = torch.randn(
        2, 8, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 12, 3), nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor, w: Callable[[nn.Module], Tensor] = lambda m: m.weight) -> Tensor:
        x = F.gelu(F.conv2d(x, w(self.one), self.one.bias))
        return F.conv2d(x, w(self.two), self.two.bias)


def build(cls: type[nn.Module], lr: float = 0.3) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = cls().double()
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def seen_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients that the optimizer is about to use, filled at each step."""
    found: list[Tensor] = []

    def note(inner: Any, args: Any, kwargs: Any) -> None:
        found[:] = [p.grad.clone() for g in inner.param_groups for p in g["params"]]

    optimizer.register_step_pre_hook(note)
    return found


@pytest.mark.parametrize("cls", [MLP, Convolutions])
def test_training_equals_a_loop_by_hand(cls: type[nn.Module]) -> None:
    model, optimizer = build(cls)
    plain, by_hand = build(cls)
    call, seen = compiled(model, POLICY), seen_by(optimizer)
    x = cls.inputs
    masks: dict[nn.Module, Tensor] = {}
    places, flipped = set(), 0.0

    def by_definition() -> Tensor:
        return plain(x, lambda m: STE.apply(m.weight, masks[m], DECAY)).square().mean()

    def steps(first: int, end: int) -> None:
        nonlocal flipped
        for step in range(first, end):
            if step % REFRESH == 0:
                masks.update((m, oracle(m.weight)) for m in plain.children())
            loss, hand = call(x).square().mean(), by_definition()
            torch.testing.assert_close(loss, hand, rtol=1e-12, atol=1e-12)
            for value, stepped in ((loss, optimizer), (hand, by_hand)):
                stepped.zero_grad()
                value.backward()
                stepped.step()
            for found, expected in zip(seen, plain.parameters(), strict=True):
                torch.testing.assert_close(found, expected.grad, rtol=1e-10, atol=1e-12)
            places.add(tuple(m.data_ptr() for m in Masks(model).tensors().values()))
            flipped = max(flipped, *Masks(model).flip_rates().values(), 0.0)

    def evaluation() -> None:
        with torch.no_grad():
            kept = plain(x, lambda m: m.weight * masks[m])
            torch.testing.assert_close(call(x), kept, rtol=1e-12, atol=1e-12)

    steps(0, 1)
    evaluation()
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(1, REFRESH + 2)
        evaluation()  # under the mask that is kept, not one of the weights as they are
        steps(REFRESH + 2, 3 * REFRESH + 1)
    assert len(places) == 1  # a CUDA graph reads them where they lie
    assert 0 < flipped < 0.5


class Run:
    """A run that can be cut off and gone on with."""

    def __init__(self) -> None:
        self.model, self.optimizer = build(MLP)
        nmcompile.compile(self.model, POLICY)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = self.model(MLP.inputs).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def state(self) -> Any:
        parts = {"model": self.model, "optimizer": self.optimizer, "masks": Masks(self.model)}
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("masks_first", [True, False])
@pytest.mark.parametrize("called_before", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(masks_first: bool, called_before: bool) -> None:
    whole = Run()
    whole.steps(REFRESH + 2)  # in the middle of a mask's life
    state = whole.state()
    expected = whole.steps(REFRESH + 2)
    resumed = Run()
    if called_before:
        resumed.model(MLP.inputs)
    order = [lambda: resumed.model.load_state_dict(state["model"])]
    order.append(lambda: Masks(resumed.model).load_state_dict(state["masks"]))
    for load in order[::-1] if masks_first else order:
        load()
    resumed.optimizer.load_state_dict(state["optimizer"])
    assert resumed.steps(REFRESH + 2) == expected
    assert set(state["model"]) == set(MLP().state_dict())  # as it was


def test_weights_that_are_loaded_into_a_called_model_get_masks_of_their_own() -> None:
    other, run = MLP().double(), Run()
    run.model(MLP.inputs)  # to compile it, say
    run.model.load_state_dict(other.state_dict())
    run.model(MLP.inputs)
    assert torch.equal(Masks(run.model).tensors()["up.weight"], oracle(other.up.weight))


def test_a_refresh_of_one_is_what_it_was_without() -> None:
    model = MLP()
    x = MLP.inputs.float()
    plain = {"rule": [TILES]}
    named = {"refresh": 1, "decay": 0, "rule": [{**TILES, "refresh": 1, "decay": 0.0}]}
    one, other = (nmcompile.explain(model, x, policy=policy) for policy in (plain, named))
    assert one.graphs[0].after == other.graphs[0].after
    assert "nm.prune" in one.graphs[0].after
    assert not any(site.has(Code.KEPT) for site in other.sites)


def test_one_read_of_a_masked_weight_replaces_every_search() -> None:
    report = nmcompile.explain(MLP(), MLP.inputs.float(), policy=POLICY)
    (graph,) = report.graphs
    assert "nm.prune" not in graph.after
    assert {name for row in graph.kept for name in row.names} == {"up.weight", "down.weight"}
    assert {(row.refresh, row.decay, row.dims) for row in graph.kept} == {(4, 0.05, (0, 1))}
    said = {s.role: s.reason for s in report.sites}
    assert "its mask is kept for 4 steps, and what it leaves out decays by 0.05" in said["fprop"]
    assert "its mask is kept for 4 steps" in said["dgrad"]
    assert "decays" not in said["dgrad"]
    assert "decays by" in str(report)


def test_a_tied_weight_has_one_mask_and_decays_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x)))

    model, optimizer = build(Tied, lr=1.0)
    seen = seen_by(optimizer)
    compiled(model, POLICY)(MLP.inputs).sum().backward()
    assert model.one.weight.grad is not None
    before, mask = model.one.weight.grad.clone(), oracle(model.one.weight)
    weight = model.one.weight.detach().clone()
    optimizer.step()
    assert list(Masks(model).tensors()) == ["one.weight"]
    torch.testing.assert_close(seen[0] - before, DECAY * ~mask * weight)


def test_a_phase_takes_masks_of_its_own() -> None:
    model, optimizer = build(MLP)
    start, end = 2, 2 + REFRESH // 2
    schedule = Schedule(model, {0: "dense", start: POLICY, end: "dense", end + 2: POLICY})
    schedule.warm_up(MLP.inputs)
    assert Masks(model).tensors() == {}
    seen = seen_by(optimizer)
    for step in range(end + 3):
        fresh = oracle(model.up.weight)
        model(MLP.inputs).square().mean().backward()
        if step in (start, end + 2):
            assert torch.equal(Masks(model).tensors()["up.weight"], fresh)
        computed = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        decays = not torch.equal(seen[0], computed[0])
        assert decays == (start <= step < end or step >= end + 2)
        optimizer.zero_grad()
        schedule.step()


def test_what_is_exported_is_the_kept_mask(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs nmcompile[export]")
    run = Run()
    taken = oracle(run.model.up.weight)
    run.steps(1)
    with torch.no_grad():  # as steps do, but more at once
        run.model.up.weight.copy_(torch.randn_like(run.model.up.weight))
    assert not torch.equal(taken, oracle(run.model.up.weight))  # a fresh one would be another
    made = nmcompile.export(run.model, tmp_path / "m.safetensors")
    plain = MLP().double()
    plain.load_state_dict(safetensors.load_file(made.path))
    assert torch.equal(plain.up.weight != 0, taken)
    with torch.no_grad():
        torch.testing.assert_close(plain(MLP.inputs), run.model(MLP.inputs))


def test_accumulated_and_scaled_gradients_decay_once() -> None:
    def run(parts: int, scale: float, **keys: Any) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        model = MLP()
        call = compiled(model, POLICY)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **keys)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for _ in range(2):
            for x in MLP.inputs.float().chunk(parts):
                scaler.scale(call(x).square().mean() / parts).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        steps = Masks(model).state_dict()["masks"]["up.weight"][0]["steps"]
        return [p.detach().clone() for p in model.parameters()], steps

    expected, steps = run(1, 1)
    assert steps == 2
    for other in (run(2, 1), run(1, 1024.0), run(2, 1024.0), run(1, 1024.0, fused=True)):
        assert other[1] == 2
        for found, value in zip(other[0], expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)


def test_exact_backward_masks_by_the_kept_mask() -> None:
    policy = {"refresh": 3, "rule": [{**TILES, "role": "fprop", "backward": "exact"}]}
    model, optimizer = build(MLP)
    call = compiled(model, policy)
    mask = oracle(model.up.weight)
    for _ in range(2):
        optimizer.zero_grad()
        call(MLP.inputs).square().mean().backward()
        assert model.up.weight.grad is not None
        assert torch.equal(model.up.weight.grad != 0, mask)
        optimizer.step()


def test_blocks_that_share_code_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    nmcompile.compile(model, POLICY, each="*")
    model(MLP.inputs.float()).sum().backward()
    found = Masks(model).tensors()
    assert {n: torch.equal(m, oracle(model[int(n[0])].weight)) for n, m in found.items()} == {
        f"{i}.weight": True for i in range(3)
    }


def test_a_frozen_weight_says_that_nothing_decays() -> None:
    model = MLP()
    model.up.weight.requires_grad_(False)
    report = nmcompile.explain(model, MLP.inputs.float(), policy=POLICY)
    found = [s.has(Code.NO_DECAY) for s in report.sites if s.role == "fprop"]
    assert found == [True, False]


def test_a_computed_weight_is_dense_and_says_why() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    report = nmcompile.explain(model, MLP.inputs.float(), policy=POLICY)
    (site,) = [s for s in report.sites if s.role == "fprop"]
    assert site.execution == "dense"
    assert site.has(Code.NOT_KEPT)
    assert "the mask of its weight cannot be kept: it is computed by" in site.reason


def test_a_copy_of_a_model_takes_masks_of_its_own() -> None:
    run = Run()
    run.steps(1)
    assert Masks(copy.deepcopy(run.model)).tensors() == {}

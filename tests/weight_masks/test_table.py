"""Who counts a step, what decays, and when a mask is taken anew; a forward is one read here."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmcompile.errors import NMWarning
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy.rule import MaskLife
from nmcompile.weight_masks import table
from nmcompile.weight_masks.stored_mask import StoredMask
from nmcompile.weight_masks.table import Kept

STORED = StoredMask(NMFormat(2, 4), Method.MSE, (1,))
LIFE = MaskLife(3, 0.5)


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 8))


def forward(w: Tensor, life: MaskLife = LIFE) -> Tensor:
    return (w * table.mask_for(w, STORED, life)).sum()


def kept(w: Tensor) -> Kept:
    return table.masks_of(w)[STORED]


def shuffle(w: Tensor) -> None:
    """Other values, written as whoever loads weights writes them."""
    with torch.no_grad():
        w.copy_(torch.randn_like(w))


def is_fresh(w: Tensor) -> bool:
    return torch.equal(kept(w).mask, STORED.take(w))


class Shuffling(torch.optim.Optimizer):
    """Its step gives other values to every weight with a gradient, and keeps what it saw."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__(weights, {})
        self.seen: list[Tensor] = []

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.seen.append(w.grad.clone())
                    shuffle(w)
        return loss


def step(w: Tensor, optimizer: Shuffling, forwards: int = 1) -> None:
    optimizer.zero_grad()
    for _ in range(forwards):
        forward(w).backward()
    optimizer.step()


def test_a_mask_is_taken_anew_after_so_many_steps_in_its_place() -> None:
    w = weight()
    optimizer, fresh = Shuffling(w), []
    for number in range(7):
        step(w, optimizer, forwards=1 + number % 3)  # micro-batches are no steps
        fresh.append(is_fresh(w))
        place = kept(w).mask.data_ptr()
    assert fresh == [False, False, True, False, False, True, False]
    assert kept(w).steps == 7
    assert kept(w).mask.data_ptr() == place
    assert kept(w).flipped is not None


def test_the_optimizer_sees_the_decay_once() -> None:
    w = weight()
    optimizer = Shuffling(w)
    values, mask = w.detach().clone(), STORED.take(w)
    step(w, optimizer, forwards=2)
    torch.testing.assert_close(optimizer.seen[0], 2 * mask.float() + 0.5 * ~mask * values)
    # The gradient of one forward is another tensor: it may have the address of the first.
    values, mask = w.detach().clone(), kept(w).mask.clone()
    step(w, optimizer)
    torch.testing.assert_close(optimizer.seen[1], mask.float() + 0.5 * ~mask * values)


def test_a_closure_computes_gradients_that_decay() -> None:
    w = weight()
    optimizer = Shuffling(w)
    values, mask = w.detach().clone(), STORED.take(w)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = forward(w)
        loss.backward()
        return loss

    for call in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
        loss = call()
        torch.testing.assert_close(loss, (values * mask).sum())
        expected = mask.float() + 0.5 * ~mask * values
        torch.testing.assert_close(optimizer.seen[-1], expected)
        values, mask = w.detach().clone(), kept(w).mask.clone()
    assert kept(w).steps == 2


def test_an_optimizer_inside_of_another_is_one_step() -> None:
    class Outer(torch.optim.Optimizer):
        def __init__(self, inner: Shuffling) -> None:
            super().__init__(inner.param_groups[0]["params"], {})
            self.inner = inner

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    w = weight()
    inner = Shuffling(w)
    values, mask = w.detach().clone(), STORED.take(w)
    forward(w).backward()
    Outer(inner).step()
    torch.testing.assert_close(inner.seen[0], mask.float() + 0.5 * ~mask * values)
    assert kept(w).steps == 1


def test_what_a_fused_optimizer_divides_by_a_scale_decays_by_as_much_more() -> None:
    w = weight()
    optimizer = Shuffling(w)
    optimizer.grad_scale = torch.tensor(8.0)  # as GradScaler sets it
    values, mask = w.detach().clone(), STORED.take(w)
    step(w, optimizer)
    torch.testing.assert_close(optimizer.seen[0], mask.float() + 4.0 * ~mask * values)


def test_a_step_without_a_forward_that_trains_counts_nothing() -> None:
    w, other = weight(), weight()
    step(w, Shuffling(w))
    with torch.no_grad():
        forward(w)
    Shuffling(w).step()
    assert kept(w).steps == 1
    forward(w).backward()
    Shuffling(other).step()  # of another weight
    assert kept(w).steps == 1


def test_evaluation_reads_the_mask_that_is_kept() -> None:
    w = weight()
    step(w, Shuffling(w))
    mask = kept(w).mask.clone()
    with torch.no_grad():
        assert torch.equal(table.mask_for(w, STORED, LIFE), mask)
    assert not is_fresh(w)


def test_before_the_first_step_the_mask_follows_the_weight() -> None:
    w = weight()
    forward(w)
    shuffle(w)
    assert not is_fresh(w)
    forward(w)
    assert is_fresh(w)
    step(w, Shuffling(w))
    forward(w)
    assert not is_fresh(w)


def test_weights_that_no_optimizer_steps_are_warned_of() -> None:
    w = weight()

    def train() -> None:
        forward(w).backward()
        shuffle(w)

    for _ in range(3):  # as if weights were loaded, and loaded again
        train()
    with pytest.warns(NMWarning, match=r"no torch.optim.Optimizer steps them: .* every 3 steps"):
        train()
    train()  # it is said once


def test_a_forgotten_mask_is_taken_anew_and_counts_nothing_before() -> None:
    w = weight()
    step(w, Shuffling(w))
    table.forget([w])
    Shuffling(w).step()
    assert kept(w).steps == 0
    shuffle(w)
    forward(w)
    assert is_fresh(w)


def test_what_is_read_undisturbed_leaves_no_trace() -> None:
    w, new = weight(), weight()
    step(w, Shuffling(w))
    before = {**vars(kept(w)), "mask": kept(w).mask.clone()}
    place = kept(w).mask.data_ptr()
    with table.undisturbed([w, new]):
        table.forget([w])
        shuffle(w)
        forward(w)
        forward(new)
    after = vars(kept(w)).copy()
    assert torch.equal(after.pop("mask"), before.pop("mask"))
    assert after == before
    assert kept(w).mask.data_ptr() == place
    shuffle(new)
    forward(new)
    assert is_fresh(new)


def test_masks_go_with_their_weights() -> None:
    w = weight()
    forward(w)
    key = id(w)
    assert key in table._weights
    del w
    gc.collect()
    assert key not in table._weights

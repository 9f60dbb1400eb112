"""The kept masks of this process, by the weight that each is of, and what happens at a step.

A mask is taken when a compiled model first reads it. From then on the steps of an optimizer are
counted in which a forward with gradients has read it: PyTorch's hooks on ``Optimizer.step`` see
every optimizer, accumulated and scaled gradients alike, and once for each step.

    before a step    w.grad += decay * (1 - mask) * w
    after it         steps += 1; where ``refresh`` divides them, the mask is taken anew, in place
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from nmcompile.errors import NMWarning
from nmcompile.policy.rule import MaskLife
from nmcompile.weight_masks.stored_mask import StoredMask


@dataclass(eq=False)
class Kept:
    """A mask, ``steps`` of the optimizer after it began.

    ``version``: of the weight when it was taken. ``used``: a forward with gradients has read it
    since the last step. ``stale``: it is taken anew when it is next read. ``loaded``: from a
    checkpoint, and no training has read it. ``flipped``: how many elements changed when it was
    last taken anew. ``decayed``: the gradient that the decay was added to in this step, and its
    version. ``follows``: how often the weight changed before any step was counted.
    """

    mask: Tensor
    steps: int = 0
    life: MaskLife = field(default_factory=lambda: MaskLife(1, 0.0))
    version: int = 0
    used: bool = False
    stale: bool = False
    loaded: bool = False
    flipped: Tensor | None = None
    decayed: tuple[int, int] | None = None
    follows: int = 0

    def take(self, weight: Tensor, stored: StoredMask) -> None:
        """Take it of the weight as it is now, in place: CUDA graphs read it where it lies."""
        new = stored.take(weight)
        self.flipped = (new != self.mask).sum()
        self.mask.copy_(new)
        self.version, self.stale = _version(weight), False

    def forget(self) -> None:
        """Let it be taken anew when it is next read, unless it has just been loaded."""
        if not self.loaded:
            self.stale, self.used, self.steps, self.follows = True, False, 0, 0


Masks = dict[StoredMask, Kept]


@dataclass
class _Weight:
    """The masks of a weight, as long as that lives."""

    alive: weakref.ref[Tensor]
    masks: Masks = field(default_factory=dict)


_weights: dict[int, _Weight] = {}


def masks_of(weight: Tensor) -> Masks:
    """All masks that are kept of a weight; add to them with ``put``."""
    found = _weights.get(id(weight))
    return found.masks if found is not None and found.alive() is weight else {}


def put(weight: Tensor, stored: StoredMask, kept: Kept) -> None:
    """Keep a mask of a weight."""
    _watch_optimizers()
    key = id(weight)
    if key not in _weights or _weights[key].alive() is not weight:
        _weights[key] = _Weight(weakref.ref(weight, lambda ref: _gone(key, ref)))
    _weights[key].masks[stored] = kept


def _gone(key: int, ref: weakref.ref[Tensor]) -> None:
    if key in _weights and _weights[key].alive is ref:
        del _weights[key]


def mask_for(weight: Tensor, stored: StoredMask, life: MaskLife) -> Tensor:
    """The mask that a forward reads now; its memory stays where it is."""
    kept = masks_of(weight).get(stored)
    if kept is None:
        kept = Kept(stored.take(weight), version=_version(weight))
        put(weight, stored, kept)
    elif kept.mask.device != weight.device:
        kept.mask = kept.mask.to(weight.device)
    trains = torch.is_grad_enabled()
    if kept.loaded:
        kept.version, kept.loaded = _version(weight), not trains
    elif kept.stale:
        kept.take(weight, stored)
    elif kept.steps == 0 and kept.version != _version(weight):
        # Before the first step the mask follows the weight: weights are loaded then.
        kept.take(weight, stored)
        kept.follows += trains
        if kept.follows == _MANY:
            _warn_of_no_optimizer(life)
    if trains:
        kept.life, kept.used = life, True
    return kept.mask


#: So many changes of a weight between calls that train are none of loading it.
_MANY = 3


def _warn_of_no_optimizer(life: MaskLife) -> None:
    decay = f", and decay = {life.decay} is not added" if life.decay else ""
    warnings.warn(
        "the weights change, and no torch.optim.Optimizer steps them: their masks are taken anew "
        f"at every change instead of every {life.refresh} steps{decay}; change them in the step() "
        "of a torch.optim.Optimizer, or leave refresh and decay out of the policy",
        NMWarning,
        stacklevel=2,
    )


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def forget(weights: Iterable[Tensor]) -> None:
    """Take all masks of these weights anew when they are next read."""
    for weight in weights:
        for kept in masks_of(weight).values():
            kept.forget()


@contextmanager
def undisturbed(weights: Iterable[Tensor]) -> Iterator[None]:
    """Leave masks as they are, whatever reads them; what is taken inside is forgotten."""
    weights = list(weights)
    found = [kept for weight in weights for kept in masks_of(weight).values()]
    before = [(kept, kept.mask.clone(), vars(kept).copy()) for kept in found]
    try:
        yield
    finally:
        for kept in (k for weight in weights for k in masks_of(weight).values() if k not in found):
            kept.forget()
        for kept, mask, rest in before:
            vars(kept).update(rest)
            kept.mask.copy_(mask)


# -- at a step -----------------------------------------------------------------------------------


@functools.cache
def _watch_optimizers() -> None:
    # Not to be traced, where a step is compiled itself.
    register_optimizer_step_pre_hook(torch.compiler.disable(_before_step))
    register_optimizer_step_post_hook(torch.compiler.disable(_after_step))


def _read_by(optimizer: Optimizer) -> Iterator[tuple[Tensor, StoredMask, Kept]]:
    """The masks of an optimizer's weights that were read since the last step."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for stored, kept in masks_of(weight).items():
                if kept.used:
                    yield weight, stored, kept


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
    if closure is None:
        _decay(optimizer)
        return None
    after = _with_decay(closure, optimizer)  # a closure computes the gradients inside of the step
    if kwargs.get("closure"):
        return args, {**kwargs, "closure": after}
    return (args[0], after, *args[2:]), kwargs


def _with_decay(closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
    @functools.wraps(closure)
    def run() -> Any:
        loss = closure()
        _decay(optimizer)
        return loss

    return run


@torch.no_grad()
def _decay(optimizer: Optimizer) -> None:
    """Add the masked decay to every gradient, once for each that was computed.

    A fused optimizer that divides by a ``GradScaler``'s factor itself says what it is.
    """
    scale = getattr(optimizer, "grad_scale", None)
    for weight, _, kept in _read_by(optimizer):
        grad = weight.grad
        if not kept.life.decay or grad is None or kept.decayed == (id(grad), grad._version):
            continue
        masked = weight.masked_fill(kept.mask, 0)
        grad.add_(masked if scale is None else masked * scale, alpha=kept.life.decay)
        kept.decayed = id(grad), grad._version  # an optimizer may step inside of another's step


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for weight, stored, kept in _read_by(optimizer):
        kept.steps, kept.used, kept.decayed = kept.steps + 1, False, None
        if kept.steps % kept.life.refresh == 0:
            kept.take(weight, stored)

"""``nm::observe``: hand the operands of a pruned product to whoever takes a sample (``meter``).

It stands in the graphs of a sampled step alone, and changes nothing that they compute.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch

from nmcompile.masks.formats import NMFormat
from nmcompile.ops.call import Call
from nmcompile.ops.schemas import LIBRARY, operator


@dataclass(frozen=True)
class ObservedSite:
    """A pruned product: which one of the model it is, and what is pruned in it how.

    ``product``: its number among those of the same module and role in a graph. ``prune``: the kind
    of the operand, whose blocks run along ``dims``; ``groups`` channel groups share the first of
    them. ``ragged``: blocks start anew with each group of rows. ``target``: the operator of a
    product of wgrad, "" of others; ``words``: its arguments, in which a list names a tensor of the
    call by its place, or the operand, being empty; anything else stands in a mapping, as "is".
    """

    module: str
    role: str
    product: int
    prune: str
    format: str
    method: str
    dims: tuple[int, ...]
    groups: int = 1
    ragged: bool = False
    target: str = ""
    words: tuple[Any, ...] = ()

    def to_json(self) -> str:
        """As the operator takes it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ObservedSite:
        """The inverse of ``to_json``."""
        plain = json.loads(text)
        return cls(**{**plain, "dims": tuple(plain["dims"]), "words": tuple(plain["words"])})

    @property
    def form(self) -> NMFormat:
        """The format, parsed."""
        return NMFormat.parse(self.format)


@operator(
    "observe(Tensor(a!) done, Tensor dense, Tensor pruned, Tensor[] beside, Tensor? result, "
    "int meter, str site) -> ()",
    lambda call: None,
    strides=torch.Tag.flexible_layout,
)
@dataclass(frozen=True)
class Observe(Call):
    """A product reads ``pruned``, and would read ``dense`` if nothing were pruned.

    ``beside``: the other tensors of a product of wgrad; ``result``: what it gave, where that may be
    read. ``meter``: the number of a sample of ``SAMPLES``; nothing happens while it is not open.
    ``done``: one element that nobody reads; what writes to it is not left out of a graph.
    """

    done: Any
    dense: Any
    pruned: Any
    beside: Any
    result: Any
    meter: int
    site: str

    def weight_gradients(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Without and with the mask; None of products of other roles."""
        if not site_of(self.site).target:
            return None
        pruned = self._product(self.pruned) if self.result is None else self.result
        return self._product(self.dense), pruned

    def _product(self, operand: torch.Tensor) -> torch.Tensor:
        site = site_of(self.site)
        namespace, name, overload = site.target.split(".")
        target = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        result = target(*(self._value(word, operand) for word in site.words))
        found = [result] if isinstance(result, torch.Tensor) else result
        gradient: torch.Tensor = next(r for r in found if r is not None)
        return gradient

    def _value(self, word: Any, operand: torch.Tensor) -> Any:
        if not isinstance(word, list):
            return word["is"]
        return self.beside[word[0]] if word else operand


#: Where calls go while a sample is taken, by the number of the meter; gone with the sample.
SAMPLES: WeakValueDictionary[int, Callable[[Observe], None]] = WeakValueDictionary()


@contextmanager
def no_samples() -> Iterator[None]:
    """Nothing that runs here is part of a sample."""
    held = dict(SAMPLES)
    SAMPLES.clear()
    try:
        yield
    finally:
        SAMPLES.update(held)


@functools.lru_cache(maxsize=4096)
def site_of(text: str) -> ObservedSite:
    """The site of a call."""
    return ObservedSite.from_json(text)


def _observe(call: Observe) -> None:
    sample = SAMPLES.get(call.meter)
    if sample is not None:
        with torch.no_grad():
            sample(call)


LIBRARY.impl("observe", lambda *args: _observe(Observe(*args)), "CompositeExplicitAutograd")

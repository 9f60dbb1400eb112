"""The figures of a pruned product, of all its calls in a sample.

With a the operand that the policy prunes, in blocks of m, and K the places that its mask keeps:

    energy       sum over K of a^2 / sum of a^2
    variance     sum of a^2 (1/p - 1) / sum of a^2     p: the probability that a is kept
    saturation   blocks in which some a is kept for certain (p = 1, a != 0) / blocks
    cosine       <D, P> / (|D| |P|)                    D, P: the dense and pruned weight gradient
    flips        |K without the K of the sample before| / |K|

The terms of several calls (micro-batches, a layer that is used twice) are added up before they are
divided.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nmcompile.gemm import OperandKind
from nmcompile.masks import reference
from nmcompile.masks.blocks import by_channel_group
from nmcompile.masks.formats import Method
from nmcompile.ops.observe import Observe, ObservedSite, site_of

#: In the order of a row.
FIGURES = ("energy", "variance", "saturation", "cosine", "flips")
#: What a random mask does is measured on about so many blocks of a call, evenly taken; on all, if
#: there are fewer.
BLOCKS = 2**12

Terms = dict[str, Tensor]


class Sample:
    """What the calls of one step add up to, by the text of their site.

    Args:
        before: the kept places of each call of a weight, in the sample before.

    Attributes:
        places: the same of this one.
    """

    def __init__(self, before: Mapping[str, Sequence[Tensor]]) -> None:
        self.before = before
        self.places: dict[str, list[Tensor]] = defaultdict(list)
        self._terms: dict[str, Terms] = defaultdict(dict)

    def __call__(self, call: Observe) -> None:
        """A product is multiplied: the operator calls this while the sample is open."""
        site, terms = site_of(call.site), self._terms[call.site]
        found = _energies(call, site) | _probabilities(call, site) | _weight_gradients(call)
        if site.prune == OperandKind.WEIGHT:
            found |= self._flips(call)
        for name, value in found.items():
            terms[name] = terms[name] + value if name in terms else value

    def _flips(self, call: Observe) -> Terms:
        kept = packed(call.pruned != 0)
        number = len(self.places[call.site])
        self.places[call.site].append(kept)
        before = self.before.get(call.site, ())
        if number >= len(before) or before[number].shape != kept.shape:
            return {}
        return {"places": count(kept), "new places": count(kept & ~before[number])}

    def figures(self) -> dict[str, dict[str, float]]:
        """By site, in the order in which they ran; a quotient that is no finite number is none."""
        return {site: _figures(terms) for site, terms in self._terms.items()}


def _figures(terms: Terms) -> dict[str, float]:
    # One transfer from the device.
    numbers = torch.stack([value.double() for value in terms.values()]).tolist()
    n = defaultdict(float, zip(terms, numbers, strict=True))
    quotients = {
        "energy": (n["kept"], n["total"]),
        "variance": (n["added"], n["some"]),
        "saturation": (n["saturated"], n["blocks"]),
        "cosine": (n["both"], math.sqrt(n["dense"]) * math.sqrt(n["pruned"])),
        "flips": (n["new places"], n["places"]),
    }
    found = {name: a / b for name, (a, b) in quotients.items() if b > 0}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _energies(call: Observe, site: ObservedSite) -> Terms:
    if not Method(site.method).random:
        return {"kept": _squares(call.pruned), "total": _squares(call.dense)}
    x, p = (_some(value, site)[0] for value in (call.dense, call.pruned))
    # A random mask raises what it keeps.
    return {"kept": _squares(torch.where(p != 0, x, 0)), "total": _squares(x)}


def _squares(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dtype=reference.compute_dtype(x.dtype))
    return norm.square()


def _probabilities(call: Observe, site: ObservedSite) -> Terms:
    """The variance that a random mask adds, and the blocks of which it keeps something for sure."""
    if not Method(site.method).random or site.ragged or call.dense.numel() == 0:
        return {}
    blocks = reference.to_blocks(*_some(call.dense, site), site.form.m)
    squares = reference.magnitudes(blocks).square()
    p = reference.inclusion_probability(blocks, site.form.n, site.method)
    added = torch.where(squares > 0, squares * (1 / p - 1), 0)
    saturated = ((p >= 1) & (squares > 0)).any(-1)
    every = torch.ones_like(saturated)
    terms = {"added": added, "some": squares, "saturated": saturated, "blocks": every}
    return {name: value.sum() for name, value in terms.items()}


def _some(x: Tensor, site: ObservedSite) -> tuple[Tensor, tuple[int, ...]]:
    """Whole blocks of a tensor, about ``BLOCKS`` at most, and the dimensions they run along."""
    m = site.form.m
    x, dims = by_channel_group(x, site.dims, site.dims[0], site.groups, m)
    others = [d for d in range(x.dim()) if d not in dims]
    if others and (times := x.numel() // (m * BLOCKS)) > 1:
        longest = max(others, key=lambda d: x.shape[d])
        step = min(times, x.shape[longest])
        x = x[(slice(None),) * longest + (slice(None, None, step),)]
    return x, dims


def _weight_gradients(call: Observe) -> Terms:
    results = call.weight_gradients()
    if results is None:
        return {}
    dense, pruned = (r.to(reference.compute_dtype(r.dtype)).flatten() for r in results)
    return {"both": dense @ pruned, "dense": dense @ dense, "pruned": pruned @ pruned}


# -- the kept places of a weight, eight in a byte -------------------------------------------------


def packed(keep: Tensor) -> Tensor:
    """A mask of any shape as ``[elements / 8]`` uint8."""
    bits = F.pad(keep.flatten(), (0, -keep.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (bits << _places(keep)).sum(-1, dtype=torch.uint8)


def count(places: Tensor) -> Tensor:
    """How many places are kept."""
    return ((places[:, None] >> _places(places)) & 1).sum()


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)

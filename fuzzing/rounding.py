"""How far rounding alone can move a result: Monte Carlo arithmetic in float64.

Every value of a float64 run, inputs included, is multiplied by 1 + u d with random |d| <= 1, where
u is the unit roundoff of the dtype that is judged (D. S. Parker, "Monte Carlo Arithmetic", 1997).
What comes out scatters as two right implementations in that dtype do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fuzzing.execute import Results, run
from fuzzing.network import Network, load

SAMPLES = 4
#: How many times the largest sampled deviation of a tensor two implementations may be apart. The
#: samples share an operator's rounding (of a variance, say), so that there are as few as four of
#: them: all four are below a sixteenth of the standard deviation once in a hundred thousand times.
FACTOR = 16.0


class Rounding(TorchDispatchMode):
    """Perturbs what every operator within it computes."""

    def __init__(self, roundoff: float, seed: int) -> None:
        super().__init__()
        self.roundoff = roundoff
        self.generator = torch.Generator().manual_seed(seed)

    def perturb(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype) * 2 - 1
        return x * (1 + self.roundoff * noise)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.is_mutable:
            return out
        return tree_map(self.perturb, out)


def tolerances(network: Network, expected: Results) -> list[Tensor | None]:
    """For every result, how far an implementation in the network's dtypes may be from it.

    Args:
        network: what was run.
        expected: the results of the float64 run.
    """
    roundoff = max(torch.finfo(d).eps for d in dtypes(network)) / 2
    worst: list[Any] = [None] * len(expected)
    for seed in range(SAMPLES):
        program = load(network, wide=True, checkpoints=False)
        mode = Rounding(roundoff, seed)
        with torch.no_grad():
            for x in (*program.inputs, *program.model.parameters()):
                x.copy_(mode.perturb(x)) if x.is_floating_point() else None
        with mode:
            found = run(program)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a is not None and b is not None:
                off = (a - b).abs().double()
                worst[i] = off if worst[i] is None else torch.maximum(worst[i], off)
    return [
        None if w is None else _bound(w, e, roundoff) for w, e in zip(worst, expected, strict=True)
    ]


def _bound(worst: Tensor, expected: Tensor, roundoff: float) -> Tensor:
    """One bound for a tensor: what norms and reductions do to one element they do to all."""
    if worst.numel() == 0:
        return worst
    least = 2 * roundoff * expected.abs().double().max()
    return FACTOR * torch.maximum(worst.max(), least).expand_as(worst)


def dtypes(network: Network) -> set[torch.dtype]:
    """The floating-point dtypes that occur in a run of the network."""
    seen: set[torch.dtype] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            tree_map(note, out)
            return out

    def note(x: Any) -> None:
        if isinstance(x, Tensor) and x.is_floating_point():
            seen.add(x.dtype)

    program = load(network, checkpoints=False)
    with Record(), torch.no_grad():
        program.model(*program.inputs)
    for x in (*program.inputs, *program.model.parameters()):
        note(x)
    return seen

"""What multiplies while a model runs and is in no graph: counted below autograd, as it happens.

Dynamo leaves to eager mode what it cannot trace, and no graph tells of it. A mode sees every
operator that runs; the operators of planned graphs, which are interpreted, run in ``unseen``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nmcompile._dynamo import in_engine
from nmcompile._torch import TorchDispatchMode, is_composite, tree_leaves
from nmcompile.graph.find_skipped import is_matrix, name_of, reason_of
from nmcompile.graph.flops import flops
from nmcompile.reason import Reason

aten = torch.ops.aten
#: Their first argument is added to the product.
_ADDED = (aten.addmm, aten.addmv, aten.baddbmm, aten.addbmm)


#: Is told of every operator before it runs: the operator, its arguments, whether it is unseen.
Before = Callable[[Any, Any, bool], None]


@dataclass(frozen=True)
class Layer:
    """An operator that multiplied in eager mode, by the innermost module that called it.

    ``reason``: why no policy could reach it in a graph either; None for a product.
    """

    path: str
    module_class: str
    target: str
    reason: Reason | None


@dataclass
class Count:
    """How often, and the FLOPs of forward and backward; None where one of them is not known."""

    calls: int = 0
    flops: float | None = 0.0


class EagerProducts(TorchDispatchMode):  # type: ignore[misc]
    """Counts the products that run inside of it, by layer."""

    #: They are called without the mode, so that nothing inside of them is seen.
    supports_higher_order_operators = True

    def __init__(self, paths: dict[nn.Module, str], before: Before = lambda *_: None) -> None:
        super().__init__()
        self._before = before
        self.found: dict[Layer, Count] = {}
        self._paths = paths
        self._unseen = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Dynamo traces while this mode is on; it would leave everything to other modes."""
        return True

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """A context of which nothing is counted."""
        before, self._unseen = self._unseen, True
        try:
            yield
        finally:
            self._unseen = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._before(func, (args, kwargs), self._unseen)
        if self._unseen:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and is_composite(func):  # its parts are looked at
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if not in_engine():  # what a backward multiplies was counted with its forward
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        one = flops(func, args, kwargs, result)
        reason = reason_of(func, sum(map(is_matrix, tensors)))
        if one is None and reason is None:
            return
        layer = Layer(*self._where(), name_of(func), reason)
        count = self.found.setdefault(layer, Count())
        count.calls += 1
        if one is None or count.flops is None:
            count.flops = None
        else:
            count.flops += one * _products_of_step(func, tensors)

    def _where(self) -> tuple[str, str]:
        """The path and class of the innermost module that is running.

        Read from the frames: a hook in every module would be traced into the graphs.
        """
        frame: Any = sys._getframe(2)
        while (frame := frame.f_back) is not None:
            code = frame.f_code
            if "self" in code.co_varnames or "self" in code.co_freevars:
                module = frame.f_locals.get("self")
                if isinstance(module, nn.Module) and module in self._paths:
                    return self._paths[module], type(module).__name__
        return "", ""


def _products_of_step(func: Any, tensors: list[torch.Tensor]) -> int:
    """The product itself, and one more in the backward for each operand with a gradient.

    What a recurrent layer multiplies by is one operand. The gradient of a factor of a scalar
    product, and that of the matrix beside a vector, are multiplications without a sum.
    """
    packet = func.overloadpacket
    if not torch.is_grad_enabled() or packet in (aten.dot, aten.vdot):
        return 1
    wanted = [t.requires_grad for t in (tensors[1:] if packet in _ADDED else tensors)]
    if packet in (aten.mv, aten.addmv):
        return 1 + wanted[1]
    return 1 + (sum(wanted) if packet is aten._trilinear else wanted[0] + any(wanted[1:]))

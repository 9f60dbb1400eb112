"""What an eager step multiplies, counted below autograd: nothing here knows of graphs or passes.

Every operator that runs is seen by a ``TorchDispatchMode``; products are told by name and their
FLOPs counted by the formulas of ``torch.utils.flop_counter``. A forward operator belongs to the
innermost module whose ``forward`` runs; a backward operator to that of the forward operator with
the same autograd sequence number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

aten = torch.ops.aten

#: Products that a graph shows as a node that a policy can prune.
_MATMULS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
#: Products inside one operator: a policy cannot reach them.
_OPAQUE = ("attention", "scaled_mm", "scaled_grouped_mm", "int_mm", "mkldnn", "rnn", "lstm", "_gru")
#: Products with a vector.
_VECTOR = (aten.mv, aten.addmv, aten.dot, aten.vdot)


@dataclass(frozen=True)
class Product:
    """One product that ran: whose it is, in which direction, and its FLOPs (of one GEMM)."""

    path: str
    backward: bool
    flops: float


@dataclass
class Layer:
    """A module with one weight that multiplies its input, each time that it was called."""

    calls: int = 0
    needs_dgrad: int = 0
    needs_wgrad: int = 0


@dataclass
class Executed:
    """The products of one step (a count of each), the opaque ones, and the layers that ran.

    ``outer`` are those among the products that reduce over one element: multiplications, which
    Inductor may write as such.
    """

    products: Counter[Product] = field(default_factory=Counter)
    outer: Counter[Product] = field(default_factory=Counter)
    opaque: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    layers: dict[str, Layer] = field(default_factory=dict)


def executed(model: nn.Module, step: Callable[[], Tensor]) -> Executed:
    """Run ``step().backward()`` in eager mode and list its products."""
    found = Executed()
    paths = {module: path for path, module in model.named_modules()}
    running = [""]
    with _inside(paths, running, found.layers), _Watch(found, running):
        step().backward()
    return found


@contextmanager
def _inside(
    paths: dict[nn.Module, str], running: list[str], layers: dict[str, Layer]
) -> Iterator[None]:
    """Keep the stack of running modules, and note what each layer's products need."""

    def enter(module: nn.Module, args: Any) -> None:
        if module in paths:
            running.append(paths[module])
            if is_layer(module):
                layer = layers.setdefault(paths[module], Layer())
                layer.calls += 1
                layer.needs_dgrad += args[0].requires_grad
                layer.needs_wgrad += module.weight.requires_grad  # type: ignore[operator]

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        if module in paths:
            running.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one linear layer or convolution with its own weight."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return isinstance(module, kinds) or type(module).__qualname__ == "Conv1D"


def grouped_flops(a: Tensor, b: Tensor) -> float:
    """FLOPs of a grouped product: every row of one meets the matrix of its group, if it has one."""
    if a.dim() == 3 and b.dim() == 2:
        return 2.0 * a.shape[1] * b.numel()  # [E, M, K] x [K, N], groups along N
    return 2.0 * a.numel() * b.shape[-1]


class _Watch(TorchDispatchMode):
    def __init__(self, found: Executed, running: list[str]) -> None:
        super().__init__()
        self.found, self.running = found, running
        self.path_of: dict[int, str] = {}  # autograd sequence number -> path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        if node is None:
            path = self.running[-1]
            # The operator's own node, if it has one, was made just before; later operators that
            # have none see the same number.
            self.path_of.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        else:
            path = self.path_of.get(node._sequence_nr(), "?")
        self._note(func.overloadpacket, path, node is not None, args, result)
        return result

    def _note(self, op: Any, path: str, backward: bool, args: Any, result: Any) -> None:
        name = op._qualified_op_name.split("::")[1]
        if op in _MATMULS:
            product = Product(path, backward, flop_registry[op](*args, out_val=result))
            self.found.products[product] += 1
            self.found.outer[product] += args[op in (aten.addmm, aten.baddbmm)].shape[-1] == 1
        elif op is aten._grouped_mm:
            self.found.products[Product(path, backward, grouped_flops(*args[:2]))] += 1
        elif op is aten.convolution:
            flops = conv_flop_count(args[0].shape, args[1].shape, result.shape, args[6])
            self.found.products[Product(path, backward, flops)] += 1
        elif op is aten.convolution_backward:
            # Each of the three GEMMs multiplies as much as the forward one.
            dy, x, w, *_ = args
            flops = conv_flop_count(x.shape, w.shape, dy.shape, args[7])
            for wanted in args[10][:2]:
                self.found.products[Product(path, backward, flops)] += bool(wanted)
        elif op in _VECTOR or any(part in name for part in _OPAQUE):
            self.found.opaque[name, path, backward] += 1
        elif op in flop_registry:
            raise NotImplementedError(f"{name} multiplies, and nothing here counts it")

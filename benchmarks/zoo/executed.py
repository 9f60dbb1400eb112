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
_MATMULS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._scaled_mm)
#: Products with a vector, of which one argument is the larger one.
_VECTOR = {aten.mv: 0, aten.addmv: 1, aten.dot: 0, aten.vdot: 0}
#: Solvers and decompositions of matrices, of which no formula is known.
_SOLVERS = ("linalg_solve", "linalg_inv", "_linalg_solve", "linalg_cholesky", "triangular_solve")


@dataclass(frozen=True)
class Product:
    """One product that ran: whose it is, in which direction, and its FLOPs (of one GEMM)."""

    path: str
    backward: bool
    flops: float


@dataclass(frozen=True)
class Opaque:
    """An operator that holds products, which a policy cannot reach; FLOPs as far as known."""

    name: str
    path: str
    backward: bool
    flops: float = 0.0

    @property
    def is_attention(self) -> bool:
        """Whether it is fused attention."""
        return "attention" in self.name


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
    Inductor may write as such; ``unused`` those that no gradient came back to (the last state of a
    recurrence, which nobody asks for), which a graph leaves out; ``weighted`` those of the forward
    of which one operand is a view of a parameter. ``extents``: how many elements each product of a
    layer reduces over along which a block may lie, by role: channels of a group, features, or rows
    and pixels; the fewest of all calls of a module.
    """

    products: Counter[Product] = field(default_factory=Counter)
    outer: Counter[Product] = field(default_factory=Counter)
    unused: Counter[Product] = field(default_factory=Counter)
    weighted: Counter[Product] = field(default_factory=Counter)
    opaque: list[Opaque] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    extents: dict[str, dict[str, int]] = field(default_factory=dict)

    def reduces(self, path: str, fprop: int, dgrad: int, wgrad: int) -> None:
        """Note what the products of one call of a layer reduce over."""
        known = self.extents.setdefault(path, {})
        for role, extent in (("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad)):
            known[role] = min(extent, known.get(role, extent))


def executed(model: nn.Module, step: Callable[[], Tensor]) -> Executed:
    """Run ``step().backward()`` in eager mode and list its products."""
    found = Executed()
    paths = {module: path for path, module in model.named_modules()}
    running = [""]
    watch = _Watch(found, running, {_storage(p) for p in model.parameters()})
    with _inside(paths, running, found), watch:
        step().backward()
    found.unused.update(watch.differentiable.values())
    return found


@contextmanager
def _inside(paths: dict[nn.Module, str], running: list[str], found: Executed) -> Iterator[None]:
    """Keep the stack of running modules, and note what each layer's products need."""

    def enter(module: nn.Module, args: Any) -> None:
        if module in paths:
            running.append(paths[module])
            if is_layer(module):
                layer = found.layers.setdefault(paths[module], Layer())
                layer.calls += 1
                layer.needs_dgrad += args[0].requires_grad
                layer.needs_wgrad += module.weight.requires_grad  # type: ignore[operator]

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        if module in paths:
            running.pop()
            if is_layer(module) and not isinstance(module, nn.modules.conv._ConvNd):
                outs = result.shape[-1]
                found.reduces(paths[module], args[0].shape[-1], outs, result.numel() // outs)

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


def attention_flops(backward: bool, args: Any) -> float:
    """FLOPs of fused attention: two products in its forward, five in its backward.

    The backward multiplies queries and keys once more. A mask leaves nothing out.
    """
    q, k, v = args[1:4] if backward else args[:3]
    rows, width, value_width = q.numel() // q.shape[-1], q.shape[-1], v.shape[-1]
    forward = 2.0 * rows * k.shape[-2] * (width + value_width)
    return forward * 2 + 2.0 * rows * k.shape[-2] * width if backward else forward


def recurrent_flops(backward: bool, args: Any) -> float:
    """FLOPs of a recurrent layer in one operator: each row meets both of its matrices, once more
    for each of the gradients."""
    x, w_input, w_hidden = args[:3]
    rows = x.numel() // x.shape[-1]
    return 2.0 * rows * (w_input.numel() + w_hidden.numel()) * (2 if backward else 1)


class _Watch(TorchDispatchMode):
    def __init__(self, found: Executed, running: list[str], parameters: set[int]) -> None:
        super().__init__()
        self.found, self.running, self.parameters = found, running, parameters
        # By autograd's sequence number: the path, and a product while no gradient came back to it.
        self.path_of: dict[int, str] = {}
        self.differentiable: dict[int, Product] = {}

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
            self.differentiable.pop(node._sequence_nr(), None)
        self._note(func.overloadpacket, path, node is not None, args, result)
        return result

    def _note(self, op: Any, path: str, backward: bool, args: Any, result: Any) -> None:
        name = op._qualified_op_name.split("::")[1]
        if op in _MATMULS:
            product = Product(path, backward, flop_registry[op](*args, out_val=result))
            self.found.products[product] += 1
            lhs, rhs = args[op in (aten.addmm, aten.baddbmm) :][:2]
            self.found.outer[product] += lhs.shape[-1] == 1
            one = (_storage(lhs) in self.parameters) != (_storage(rhs) in self.parameters)
            self.found.weighted[product] += one and not backward
            needs_gradient = lhs.requires_grad or rhs.requires_grad
            if needs_gradient and torch.is_grad_enabled() and not backward:
                self.differentiable[torch.autograd._get_sequence_nr() - 1] = product
        elif op is aten._grouped_mm:
            self.found.products[Product(path, backward, grouped_flops(*args[:2]))] += 1
        elif op is aten.convolution:
            x, w, transposed, groups = *args[:2], args[6], args[8]
            flops = conv_flop_count(x.shape, w.shape, result.shape, transposed)
            self.found.products[Product(path, backward, flops)] += 1
            ins, outs = (w.shape[0] // groups, w.shape[1])[:: 1 if transposed else -1]
            rows = (x.numel() // x.shape[1], result.numel() // result.shape[1])[not transposed]
            self.found.reduces(path, ins, outs, rows)
        elif op is aten.convolution_backward:
            # Each of the three GEMMs multiplies as much as the forward one.
            dy, x, w, *_ = args
            flops = conv_flop_count(x.shape, w.shape, dy.shape, args[7])
            for wanted in args[10][:2]:
                self.found.products[Product(path, backward, flops)] += bool(wanted)
        elif (flops := _hidden(op, name, args)) is not None:
            self.found.opaque.append(Opaque(name, path, backward, flops))
        elif op in flop_registry:
            raise NotImplementedError(f"{name} multiplies, and nothing here counts it")


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _hidden(op: Any, name: str, args: Any) -> float | None:
    """FLOPs of an operator that holds products; None for one that multiplies no matrices."""
    backward = "backward" in name
    if op in _VECTOR:
        return 2.0 * args[_VECTOR[op]].numel()
    if "attention" in name:
        return attention_flops(backward, args)
    if name.startswith("mkldnn_rnn_layer"):
        return recurrent_flops(backward, args)
    if name.startswith(_SOLVERS):
        return 0.0
    if any(part in name for part in ("scaled_grouped_mm", "int_mm", "rnn", "lstm", "_gru")):
        raise NotImplementedError(f"{name} multiplies, and nothing here counts it")
    return None

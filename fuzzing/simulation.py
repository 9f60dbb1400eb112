"""What a policy does to a network, simulated in eager PyTorch, one operator after the other.

A dispatch mode sees every product of the forward and of autograd's backward as it runs. It knows
no graph: an operand's kind is a tag on its storage, a backward product finds its forward product
through the autograd node that is running, a module is the one whose forward is being called.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fuzzing.execute import cotangents
from fuzzing.functions import gradient_in_forward
from fuzzing.masks import keep, keep_ragged, keep_tiles
from fuzzing.products import FALLBACK, FALLBACK_BACKWARD, LEFT, Product, Rules, Side, matches

aten = torch.ops.aten

#: Their values follow from their arguments' shapes alone.
FACTORIES = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
             "new_full", "new_empty", "new_empty_strided", "zero_", "fill_")  # fmt: skip
SKIPPED = (
    "_scaled_dot_product_",
    "mv",
    "addmv",
    "dot",
    "vdot",
    "_int_mm",
    "mkldnn_rnn",
    "_trilinear",
    "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention",
)
STRENGTH = ("gradient", "activation", "weight")


class Simulation(TorchDispatchMode):
    """Within it, every product follows ``rules``; ``products`` lists them.

    Args:
        model: its modules' paths and classes, parameters and buffers.
        inputs: what the model is called with.
        rules: as mappings with the keys of a policy file.
        expected: random masks are left out: each is unbiased, so that what comes out of a policy
            that prunes only gradients at random is the expectation.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Tensor], rules: Rules, expected: bool = False
    ) -> None:
        super().__init__()
        self.rules, self.expected = rules, expected
        self.products: list[Product] = []
        self.multiplied: set[tuple[Any, ...]] = set()  # operators and the shapes of their tensors
        self.has_short = False  # an operand stays dense for being shorter than a block
        self.decomposed = 0  # products so small that Inductor writes them without one
        self._names = {id(m): name for name, m in model.named_modules()}
        self._stack: list[nn.Module] = []
        self._kinds: dict[int, str | None] = {}
        self._alive: list[Any] = []
        self._forward: dict[int, Product] = {}
        self._newest = -1  # the number of the newest autograd node
        self.skipped: Counter[str] = Counter()  # they multiply, and are no product node
        self._table = _inductor_decompositions()
        for x in inputs:
            self.tag(x, "activation")
        for w in (*model.parameters(), *model.buffers()):
            self.tag(w, "weight")

    @contextmanager
    def paths(self) -> Iterator[None]:
        """Follow which module's forward runs."""
        enter = register_module_forward_pre_hook(lambda m, _: self._stack.append(m))
        leave = register_module_forward_hook(lambda m, *_: (self._stack.pop(), None)[1])
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def tag(self, x: Tensor, kind: str | None) -> None:
        """Say what a tensor holds."""
        storage = x.untyped_storage()
        self._alive.append(storage)
        self._kinds[storage._cdata] = kind

    def kind(self, x: Tensor) -> str | None:
        return self._kinds.get(x.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (gradient := gradient_in_forward()) is not None:
            self.tag(gradient, "gradient")
        self._newest = torch.autograd._get_sequence_nr() - 1
        if func in LEFT:
            out = self._matmul(func, args, kwargs)
        elif func is aten.convolution.default:
            out = self._convolution(func, args)
        elif func is aten.convolution_backward.default:
            out = self._convolution_backward(func, args)
        elif str(func) == FALLBACK:
            out = self._grouped_fallback(func, args)
        elif str(func) == FALLBACK_BACKWARD:
            out = self._grouped_fallback_backward(func, args)
        else:
            out = func(*args, **kwargs)
            name = func._schema.name.removeprefix("aten::")
            if func not in self._table and name.startswith(SKIPPED):
                self.skipped[name] += 1
        self._follow(func, args, kwargs, out)
        return out

    def _is_decomposed(self, func: Any, args: Any, kwargs: Any) -> bool:
        found = func in self._table and (self._table[func](*args, **kwargs) is not NotImplemented)
        self.decomposed += found
        return found

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Tag what came out with the strongest kind of what went in."""
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        known = {self.kind(t) for t in tensors}
        kind = next((k for k in STRENGTH if k in known), None)
        name = func._schema.name.split("::")[1]
        if name in FACTORIES:
            kind = None
        for t in tree_leaves(out):
            if not isinstance(t, Tensor):
                continue
            new = t.untyped_storage()._cdata not in self._kinds
            whole = t.numel() * t.element_size() == t.untyped_storage().nbytes()
            if name == "copy_" and whole:
                self.tag(t, self.kind(args[1]))
            elif new or (func._schema.is_mutable and (whole or name not in FACTORIES)):
                self.tag(t, kind)

    def backward(
        self, program: Any, outputs: Sequence[Tensor], gradients: Callable[..., Any]
    ) -> Any:
        """``gradients(program, outputs)`` with what comes in tagged as gradients."""

        def tagged(ends: Sequence[Tensor]) -> list[Tensor]:
            starts = cotangents(ends)
            for g in starts:
                self.tag(g, "gradient")
            return starts

        return gradients(program, outputs, tagged)

    # -- products ------------------------------------------------------------------------------

    def _matmul(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        left = LEFT[func]
        a, b = args[left : left + 2]
        grouped = func is aten._grouped_mm.default
        by_group = grouped and a.dim() == b.dim() == 2
        offsets = args[2] if by_group else None
        lhs = self._matrix(a, a.dim() - 1, offsets)
        rhs = self._matrix(b, b.dim() - 2, offsets)
        batch = a.shape[0] if a.dim() == b.dim() == 3 else 1
        sizes = (batch, a.shape[-2], b.shape[-1], a.shape[-1])
        one_weight = (lhs.kind == "weight") != (rhs.kind == "weight")
        layer = "grouped" if grouped else "linear"
        op, role = layer if one_weight else "matmul", "fprop"
        partner = None
        followed = not self._hidden()
        if "gradient" in (lhs.kind, rhs.kind):
            partner = self._partner()
            followed = partner is not None
            op = partner.op if partner else op
            is_dgrad = op == "matmul" or "weight" in (lhs.kind, rhs.kind)
            role = "dgrad" if is_dgrad else "wgrad"
            if partner:
                self._read_pruned(partner, lhs, rhs)
        product = self._product(op, role, lhs, rhs, sizes, partner)
        product.followed = followed
        if not self._is_decomposed(func, args, kwargs):
            self._list(product, func, args)
        values = list(args)
        values[left : left + 2] = self._pruned(product, lhs), self._pruned(product, rhs)
        self._remember(product, args)
        if grouped:  # which takes rows of multiples of 16 bytes alone
            values[:2] = map(_with_strides, values[:2], args[:2])
        out: Tensor = func(*values, **kwargs)
        if partner is not None and partner.exact and partner.keep is not None:
            as_left = partner.pruned == partner.kinds[0]
            gradient_left = lhs.kind == "gradient"
            wanted = {"activation": "dgrad", "weight": "wgrad"}[str(partner.pruned)]
            if role == wanted:
                out = out * (partner.keep if as_left == gradient_left else partner.keep.mT)
        return out

    def _matrix(self, x: Tensor, dim: int, offsets: Tensor | None = None) -> Side:
        """An operand of a matrix product that reduces over ``dim``."""
        tiles = ((x.dim() - 2, x.dim() - 1), 1)
        return Side(self._operand(x), x, (dim,), x.shape[dim], tiles=tiles, offsets=offsets)

    def _grouped_fallback(self, func: Any, args: Any) -> Tensor:
        x, w, offs = args
        lhs, rhs = self._matrix(x, 1), self._matrix(w, 1)
        sizes = (1, x.shape[0], w.shape[2], x.shape[1])
        op = "grouped" if "weight" in (lhs.kind, rhs.kind) else "matmul"
        product = self._product(op, "fprop", lhs, rhs, sizes, None)
        self._list(product, func, args)
        if x.requires_grad or w.requires_grad:  # which its Function hides, and is its own node
            self._forward.setdefault(self._newest, product)
        out: Tensor = func(self._pruned(product, lhs), self._pruned(product, rhs), offs)
        return out

    def _grouped_fallback_backward(self, func: Any, args: Any) -> tuple[Tensor, Tensor]:
        """dX [S,I] = dY [S,O] W^T and dW [E,I,O] = X^T dY; the operator computes both."""
        x, w, offs, dy = args
        partner = self._partner()
        assert partner is not None, "no Function of the fuzzer has groups"
        (rows, ins), outs = x.shape, w.shape[2]
        results = list(func(*args))
        sides = {
            "dgrad": (self._matrix(dy, 1), self._matrix(w, 2), (1, rows, ins, outs)),
            "wgrad": (self._matrix(x, 0, offs), self._matrix(dy, 0, offs), (1, ins, outs, rows)),
        }
        for output, (role, (lhs, rhs, sizes)) in enumerate(sides.items()):
            if not (x, w)[output].requires_grad:
                continue
            self._read_pruned(partner, lhs, rhs)
            role = "dgrad" if partner.op == "matmul" else role
            product = self._product(partner.op, role, lhs, rhs, sizes, partner)
            self._list(product, func, args)
            left, right = self._pruned(product, lhs), self._pruned(product, rhs)
            operands = (x, right, offs, left) if output == 0 else (left, w, offs, right)
            result = func(*operands)[output]
            masked = ("activation", "weight")[output]
            if partner.exact and partner.keep is not None and partner.pruned == masked:
                result = result * partner.keep
            results[output] = result
        return results[0], results[1]

    def _convolution(self, func: Any, args: Any) -> Tensor:
        x, w, bias, *config = args
        y = func(*args)
        lhs, rhs, sizes = self._sides(x, w, y, config, "fprop")
        product = self._product("conv", "fprop", lhs, rhs, sizes, None)
        self._list(product, func, args)
        self._remember(product, args)
        if product.pruned is None:
            return y
        return func(self._pruned(product, lhs), self._pruned(product, rhs), bias, *config)

    def _convolution_backward(self, func: Any, args: Any) -> list[Tensor | None]:
        dy, x, w, _, *config, wanted = args
        partner = self._partner()
        assert partner is not None, "no Function of the fuzzer convolves"
        results: list[Tensor | None] = [None, None, None]
        for output, role in enumerate(("dgrad", "wgrad")):
            if not wanted[output]:
                continue
            lhs, rhs, sizes = self._sides(x, w, dy, config, role)
            self._read_pruned(partner, lhs, rhs)
            product = self._product("conv", role, lhs, rhs, sizes, partner)
            self._list(product, func, args)
            g, other = self._pruned(product, lhs), self._pruned(product, rhs)
            only = [output == 0, output == 1, False]
            operands = (g, x, other) if role == "dgrad" else (g, other, w)
            result = func(*operands, None, *config, only)[output]
            masked = {"dgrad": "activation", "wgrad": "weight"}[role]
            if partner.exact and partner.keep is not None and partner.pruned == masked:
                result = result * partner.keep
            results[output] = result
        if wanted[2]:
            results[2] = dy.sum((0, *range(2, dy.dim())))
        return results

    def _sides(
        self, x: Tensor, w: Tensor, y: Tensor, config: Any, role: str
    ) -> tuple[Side, Side, tuple[int, int, int, int]]:
        """The two operands of a convolution in a role, and (groups, M, N, K)."""
        stride, padding, _, transposed, _, groups = config
        ins, outs = x.shape[1] // groups, y.shape[1] // groups
        image = x if transposed else y
        tokens = _tokens(image)
        window = math.prod(w.shape[2:])
        pixels = (0, *range(2, x.dim()))
        pointwise = window == 1 and set(stride) == {1} and set(padding) == {0}
        weight_dim = int((role == "fprop") != transposed)  # 1: [O, C/g] reduced over C
        extent = ins if role == "fprop" else outs
        weight = Side(self._operand(w), w, (weight_dim,), extent,
                      1 if weight_dim else groups, ((0, 1), groups))  # fmt: skip
        if role == "fprop":
            lhs = Side(self._operand(x), x, (1,), ins, groups)
            return lhs, weight, (groups, tokens, outs, ins * window)
        if role == "dgrad":
            lhs = Side(self._operand(y), y, (1,), outs, groups)
            return lhs, weight, (groups, tokens, ins, outs * window)
        lhs = Side(self._operand(y), y, pixels, tokens, in_place=pointwise or not transposed)
        rhs = Side(self._operand(x), x, pixels, tokens, in_place=pointwise or transposed)
        return lhs, rhs, (groups, outs, ins * window, tokens)

    def _operand(self, x: Tensor) -> str:
        return self.kind(x) or "activation"

    def _partner(self) -> Product | None:
        """The forward product whose autograd node runs now; None in a custom Function or a hook."""
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        return self._forward.get(node._sequence_nr())

    def _hidden(self) -> bool:
        """Whether a gradient runs that no tag tells: one that the forward takes itself."""
        return torch._C._current_autograd_node() is not None

    def _remember(self, product: Product, args: Any) -> None:
        differentiated = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if product.role == "fprop" and torch.is_grad_enabled() and differentiated:
            self._forward[self._newest] = product

    def _product(
        self,
        op: str,
        role: str,
        lhs: Side,
        rhs: Side,
        sizes: tuple[int, int, int, int],
        partner: Product | None,
    ) -> Product:
        module = self._stack[-1] if self._stack else None
        path = partner.path if partner else self._names.get(id(module), "")
        # The package knows no class for what the compiled module computes itself.
        own = type(module).__name__ if path else ""
        cls = partner.module_class if partner else own
        dtype = str(lhs.value.dtype).removeprefix("torch.")
        product = Product(path, cls, op, role, sizes, dtype, (lhs.kind, rhs.kind))
        product.sides = (lhs, rhs)
        return product

    def _list(self, product: Product, func: Any, args: Any) -> None:
        self._decide(product)
        self.products.append(product)
        shapes = {id(a): tuple(a.shape) for a in args if isinstance(a, Tensor)}
        self.multiplied.add((str(func), *shapes.values()))

    def _decide(self, p: Product) -> None:
        assert p.sides is not None
        numbered = enumerate(self.rules, 1)
        p.rule, rule = next(((i, r) for i, r in numbered if matches(r, p)), (None, {}))
        if p.rule is None or rule.get("dense"):
            return
        n, m = map(int, rule["format"].split(":"))
        side = next((s for s in p.sides if s.kind == rule["prune"]), None)
        method = rule.get("method") or ("mvue" if rule["prune"] == "gradient" else "mse")
        exact = rule.get("backward") == "exact"
        if side is None or n == m or (exact and p.op == "matmul"):
            return
        if not side.in_place and method != "transposable":
            return
        if side.extent < m:
            self.has_short = True
            return
        p.pruned, p.format, p.method, p.dims = side.kind, f"{n}:{m}", method, side.dims
        p.exact = exact
        if method == "transposable":
            assert side.tiles is not None
            p.keep = keep_tiles(side.value, n, m, *side.tiles)
        elif method == "mse" and side.offsets is not None:
            p.keep = keep_ragged(side.value, n, m, *side.dims, side.offsets)
        elif method == "mse":
            p.keep = keep(side.value, n, m, side.dims, side.groups)

    def _pruned(self, p: Product, side: Side) -> Tensor:
        if p.pruned != side.kind or p.sides is None:
            return side.value
        if side is not next(s for s in p.sides if s.kind == p.pruned):
            return side.value
        if p.keep is None:
            assert self.expected, "random masks are not simulated"
            return side.value
        return torch.where(p.keep, side.value, 0)

    def _read_pruned(self, partner: Product, *sides: Side) -> None:
        """``backward = "exact"``: the operand that fprop read pruned is read pruned here too."""
        if not partner.exact or partner.keep is None or partner.sides is None:
            return
        forward = next(s for s in partner.sides if s.kind == partner.pruned).value
        for side in sides:
            if side.kind != partner.pruned:
                continue
            mask = partner.keep if _lies_alike(side.value, forward) else partner.keep.mT
            side.value = torch.where(mask, side.value, 0)


def _lies_alike(x: Tensor, forward: Tensor) -> bool:
    """Whether it is what the forward read as the forward read it, and not its transpose."""
    if x.shape != forward.shape:
        return False
    if x.untyped_storage()._cdata == forward.untyped_storage()._cdata:
        return x.stride() == forward.stride()  # a symmetric matrix equals its transpose
    # Rows behind the last group hold whatever the memory did, also what is no number; and what was
    # copied is not the same to the last bit where every operator rounds (``rounding.py``).
    return torch.allclose(x, forward, rtol=1e-9, atol=0, equal_nan=True)


def _with_strides(x: Tensor, like: Tensor) -> Tensor:
    """``x``, where it lies in memory as ``like``."""
    if x.stride() == like.stride():
        return x
    return torch.empty_strided(x.shape, like.stride(), dtype=x.dtype).copy_(x)


def _tokens(image: Tensor) -> int:
    return math.prod((image.shape[0], *image.shape[2:]))


def _inductor_decompositions() -> dict[Any, Callable[..., Any]]:
    """How Inductor writes operators by others (a tiny product as a sum); each may decline."""
    from torch._inductor.decomposition import select_decomp_table

    return dict(select_decomp_table())

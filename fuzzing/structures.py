"""Products that gradients and weights reach in unusual ways.

Gathered weights, grouped products, custom autograd Functions (one that computes its gradient in the
forward, too), hooks and products under ``torch.func.grad``.
"""

from __future__ import annotations

import torch

from fuzzing.builder import Scope
from fuzzing.functions import FUNCTIONS, register_fallback
from fuzzing.statements import Writer, dtype_of, held_tensor


def gathered_weight(s: Scope) -> str | None:
    """A product with some of a stack of weights: by index, by slice, by a tensor of indices."""
    x = s.pick(lambda v: v.dim() in (2, 3) and v.shape[-1] > 0 and v.numel() > 0)
    if x is None:
        return None
    v, e, o = s.values[x], s.choose(2, 3, 4), s.size(12)
    rows, c = v.shape[0], v.shape[-1]
    chosen = f"torch.tensor({[s.random.randrange(e) for _ in range(rows)]})"
    number = s.random.randrange(e)
    some = f"torch.tensor({sorted(s.random.sample(range(rows), s.random.randint(1, rows)))})"
    zeros = (*v.shape[:-1], o)
    forms = [
        ((e, c, o), f"{{0}} @ W[{number}]"),
        ((e, o, c), f"F.linear({{0}}, W[{number}])"),
        ((e, o, c), f"{{0}} @ W.select(0, {number}).t()"),
        ((e, o, c), f"{{0}} @ W.unbind(0)[{number}].t()"),
        ((e, c, o), f"torch.matmul({{0}}, W.index_select(0, torch.tensor([{number}]))[0])"),
        # An expert of an eager mixture: some of the rows, and back to their places.
        ((e, c, o), f"{{0}}.new_zeros({zeros}).index_add(0, {some}, {{0}}[{some}] @ W[{number}])"),
    ]
    if v.dim() == 2:
        forms += [
            ((e, o, c), f"torch.bmm(W[{chosen}], {{0}}.unsqueeze(-1)).squeeze(-1)"),
            ((e, c, o), f"torch.bmm({{0}}.unsqueeze(1), W[{chosen}]).squeeze(1)"),
            ((rows + 1, c, o), "torch.bmm({0}.unsqueeze(1), W[1:]).squeeze(1)"),
        ]
    else:
        forms += [
            ((e, c, o), f"torch.bmm({{0}}, W[{chosen}])"),
            ((e, o, c), f"torch.bmm({{0}}, W.index_select(0, {chosen}).transpose(1, 2))"),
            ((rows + 1, c, o), "torch.bmm({0}, W[:-1])"),
        ]
        if min(c, o) > 1:  # else what is read of a row is a vector
            read = f"F.embedding({chosen}, W).view(-1, {c}, {o})"
            forms.append(((e, c * o), f"torch.bmm({{0}}, {read})"))
    size, form = s.random.choice(forms)
    weight, held = held_tensor(s, size, dtype_of(s, x))
    return s.add("gathered weight", f"{{out}} = {form.replace('W', weight)}", x, held=(held,))


def grouped_product(s: Scope) -> str | None:
    """Rows times the matrix of their group, as experts have it; groups may be empty or left out.

    PyTorch's own operator in 16 bits, else transformers', which has every dtype.
    """
    x = s.pick(lambda v: v.dim() >= 2 and v.shape[-1] > 0 and v.numel() > 0)
    if x is None:
        return None
    if s.values[x].dtype == torch.float64 or s.chance(0.3):
        return _fallback(s, x)
    return _grouped_mm(s, x)


def _fallback(s: Scope, x: str) -> str | None:
    register_fallback()
    v, dtype = s.values[x], dtype_of(s, x)
    e, c, o = s.choose(2, 3, 4), v.shape[-1], s.size(12)
    offs, held = _offsets(s, v.numel() // c, e)
    up = s.choose(((e, c, o), "W"), ((e, o, c), "W.transpose(1, 2)"), ((e, c, o), "(W * 0.5)"))
    down = s.choose(((e, o, c), "W"), ((e, c, o), "W.mT"))
    code = "{out} = {0}.flatten(0, -2)"
    for shape, read in (up, down)[: s.choose(1, 1, 2)]:
        weight, made = held_tensor(s, shape, dtype)
        held.append(made)
        weight = read.replace("W", weight)
        product = f"torch.ops.transformers.grouped_mm_fallback({{out}}, {weight}, {offs})"
        code += f"; {{out}} = {product}.tanh()"
    return _add_grouped(s, code.removesuffix(".tanh()"), x, held)


def _grouped_mm(s: Scope, x: str) -> str | None:
    v = s.values[x]
    e, c, o = s.choose(2, 3, 4), -(-v.shape[-1] // 8) * 8, s.choose(8, 16)
    rows = v.numel() // v.shape[-1]
    offs, held = _offsets(s, rows, e)
    # Nobody writes the rows behind the last group: zeros in the result, and in the input for its
    # gradient. A row has a multiple of 16 bytes.
    blank = f".masked_fill((torch.arange({rows}) >= {offs}[-1])[:, None], 0)"
    padded = f"F.pad({{0}}.to(BF16), (0, {c - v.shape[-1]}))"
    y = f"{padded}.flatten(0, -2){blank}"

    def weight(*shape: int) -> str:
        name, made = held_tensor(s, shape, "BF16")
        held.append(made)
        return name

    forms = ["rows", "rows", "experts", "reduced"]
    forms += ["columns"] * (rows % 8 == 0) + ["batched"] * (v.dim() == 3)
    match s.random.choice(forms):
        case "rows":
            w = weight(e, c, o) if s.chance(0.5) else f"{weight(e, o, c)}.transpose(1, 2)"
            code = f"grouped_mm({y}, {w}, {offs}){blank}"
        case "experts":
            h = f"F.silu(grouped_mm({y}, {weight(e, c, o)}, {offs}))"
            code = f"grouped_mm({h}, {weight(e, c, o)}.mT, {offs}){blank}"
        case "columns":
            code = f"grouped_mm({weight(e, o, c)}, ({y}).t(), {offs}).t(){blank}"
        case "reduced":
            code = f"{{out}} = {y}; {{out}} = grouped_mm({{out}}.t(), {{out}}.tanh(), {offs})"
        case _:
            w = weight(v.shape[0], c, o) if s.chance(0.5) else f"{padded}.mT"
            code = f"grouped_mm({padded}, {w})"
    code = code if code.startswith("{out}") else f"{{out}} = {code}"
    return _add_grouped(s, code, x, held)


def _offsets(s: Scope, rows: int, groups: int) -> tuple[str, list[tuple[str, str]]]:
    """Where groups end, in the code, in a buffer or as data: (how it is read, what is held)."""
    ends = sorted(s.random.choices(range(rows + 1), k=groups))
    if s.chance(0.5):
        ends[-1] = rows
    tensor = f"torch.tensor({ends}, dtype=torch.int32)"
    if s.chance(0.5):
        return tensor, []
    name = s.name("offs")
    return f"self.{name}", [(name, f"nn.Buffer({tensor})")]


def _add_grouped(s: Scope, code: str, x: str, held: list[tuple[str, str]]) -> str | None:
    return s.add("grouped product", code, x, held=tuple(held))


def custom_function(s: Scope) -> str | None:
    """An autograd Function with products of its own in both directions."""
    x = s.pick(lambda v: v.dim() == 2 and v.numel() > 0)
    if x is None:
        return None
    v = s.values[x]
    name = s.choose(*FUNCTIONS)
    weight, held = held_tensor(s, (s.size(12), v.shape[-1]), dtype_of(s, x))
    return s.add("custom function", f"{{out}} = {name}.apply({{0}}, {weight})", x, held=(held,))


def hooked(s: Scope) -> str | None:
    """A hook that multiplies the gradient of a value."""
    x = s.pick(lambda v: v.dim() == 2 and v.requires_grad and v.numel() > 0)
    if x is None:
        return None
    c = s.values[x].shape[-1]
    weight, held = held_tensor(s, (c, c), dtype_of(s, x))
    w = f"{weight}.detach()"
    product = s.choose(f"g @ {w}", f"g @ {w}.t() + g", "g @ (g.t() @ g)")
    hook = f"{{out}}.register_hook(lambda g: {product})"
    code = f"{{out}} = {{0}} * 1.0; {{out}}.requires_grad and {hook}"
    return s.add("hook", code, x, held=(held,))


def inner_gradient(s: Scope) -> str | None:
    """A forward that takes a derivative itself."""
    x = s.pick(lambda v: v.dim() == 2 and v.numel() > 0)
    if x is None:
        return None
    weight, held = held_tensor(s, (s.values[x].shape[-1], s.size(12)), dtype_of(s, x))
    twice = f"((y @ {weight}) @ {weight}.t()).square().sum()"
    form = s.choose(f"(y @ {weight}).tanh().sum()", twice)
    code = f"{{out}} = torch.func.grad(lambda y: {form})({{0}})"
    return s.add("inner gradient", code, x, held=(held,))


STRUCTURES: dict[Writer, float] = {
    gathered_weight: 1.2,
    grouped_product: 1.2,
    custom_function: 0.8,
    hooked: 0.3,
    inner_gradient: 0.2,
}

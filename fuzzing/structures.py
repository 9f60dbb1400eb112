"""Products that gradients and weights reach in unusual ways.

Gathered weights, custom autograd Functions (one that computes its gradient in the forward, too),
hooks, products under ``torch.func.grad`` and nested regions.
"""

from __future__ import annotations

from fuzzing.builder import Scope
from fuzzing.functions import FUNCTIONS
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
    forms = [
        ((e, c, o), f"{{0}} @ W[{number}]"),
        ((e, o, c), f"F.linear({{0}}, W[{number}])"),
        ((e, o, c), f"{{0}} @ W.select(0, {number}).t()"),
        ((e, o, c), f"{{0}} @ W.unbind(0)[{number}].t()"),
        ((e, c, o), f"torch.matmul({{0}}, W.index_select(0, torch.tensor([{number}]))[0])"),
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
            ((e, c * o), f"torch.bmm({{0}}, F.embedding({chosen}, W).view(-1, {c}, {o}))"),
            ((rows + 1, c, o), "torch.bmm({0}, W[:-1])"),
        ]
    size, form = s.random.choice(forms)
    weight, held = held_tensor(s, size, dtype_of(s, x))
    return s.add("gathered weight", f"{{out}} = {form.replace('W', weight)}", x, held=(held,))


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
    custom_function: 0.8,
    hooked: 0.3,
    inner_gradient: 0.2,
}

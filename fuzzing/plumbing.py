"""Statements without products: norms, activations, views, in-place operations, casts, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fuzzing.builder import Scope
from fuzzing.statements import Writer, dtype_of, held_tensor, layer

SMOOTH = ("gelu", "silu", "tanh", "softplus", "sigmoid", "elu", "mish")
KINKED = ("relu", "leaky_relu", "hardswish", "relu6")


def activation(s: Scope) -> str | None:
    x = s.pick()
    if x is None:
        return None
    # In 16 bits a kink is met so often that rounding alone changes gradients.
    names = SMOOTH if s.values[x].dtype.itemsize == 2 else SMOOTH + KINKED
    return s.add("activation", f"{{out}} = F.{s.random.choice(names)}({{0}})", x)


def norm(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 2 and v.numel() > 0 and v.shape[-1] > 1)
    if x is None:
        return None
    v, cast = s.values[x], dtype_of(s, x)
    c = v.shape[1]
    forms = [f"nn.LayerNorm({v.shape[-1]}, dtype={cast})"] * 2
    forms.append(f"nn.RMSNorm({v.shape[-1]}, dtype={cast})")
    if v.numel() // c > 1:
        forms.append(f"nn.GroupNorm({s.choose(1, c, 2 if c % 2 == 0 else 1)}, {c}, dtype={cast})")
        if 2 <= v.dim() <= 5:
            kind = {2: 1, 3: 1, 4: 2, 5: 3}[v.dim()]
            forms.append(f"nn.BatchNorm{kind}d({c}, dtype={cast})")
    made, held = layer(s, "norm", s.random.choice(forms))
    # Without a gradient for a channels-last input, eager GroupNorm's backward crashes the process.
    read = "{0}.contiguous()" if "GroupNorm" in held[1] else "{0}"
    return s.add("norm", f"{{out}} = {made}({read})", x, held=(held,))


def view(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1)
    if x is None:
        return None
    shape = s.values[x].shape
    n, d, e = len(shape), s.random.randrange(len(shape)), s.random.randrange(len(shape))
    size = shape[d]
    forms = [
        f"{{0}}.transpose({d}, {e})",
        f"{{0}}.movedim({d}, {e})",
        f"{{0}}.permute({', '.join(map(str, s.random.sample(range(n), n)))})",
        f"{{0}}.flip({d})",
        f"{{0}}.roll(1, {d})",
        f"{{0}}.unsqueeze({d})",
        f"{{0}}.select({d}, {max(0, size - 1)})",
        f"{{0}}.narrow({d}, {size // 3}, {max(1, size // 2)})",
        f"{{0}}[{':, ' * d}::2]",
        f"{{0}}[{':, ' * d}1:]",
        f"{{0}}.chunk(2, {d})[0]",
        f"{{0}}.split({max(1, size // 2)}, {d})[-1]",
        f"{{0}}.unfold({d}, {min(2, size)}, {s.choose(1, 2)})",
        f"{{0}}.contiguous().transpose({d}, {e}).contiguous().transpose({d}, {e})",
        f"torch.cat([{{0}}, {{0}}.tanh()], {d})",
        f"torch.stack([{{0}}, -{{0}}], {d})",
        f"{{0}}.repeat_interleave(2, {d})",
        f"{{0}}.unsqueeze({d}).expand({', '.join('3' if i == d else '-1' for i in range(n + 1))})",
        "{0}.squeeze()",
        "{0}.flatten(1)",
        "{0}.flatten(0, -2)",
    ]
    for part in (2, 3, 4):
        if size and size % part == 0:
            forms.append(f"{{0}}.unflatten({d}, ({part}, -1))")
    if n == 4:
        forms += ["{0}.contiguous(memory_format=torch.channels_last)", "F.unfold({0}, 2)"]
        forms += [
            "F.avg_pool2d({0}, 2)",
            "F.pad({0}, (1, 0, 0, 1))",
            "F.adaptive_avg_pool2d({0}, 2)",
        ]
        forms += ["F.interpolate({0}, scale_factor=2)", "F.pixel_shuffle({0}, 2)"]
    if s.chance(0.03):
        forms = [f"{{0}}[{':, ' * d}:0]"]
    return s.add("view", f"{{out}} = {s.random.choice(forms)}", x)


def combine(s: Scope) -> str | None:
    """A residual, a gate, a concatenation: two values that fit."""
    x = s.pick()
    if x is None:
        return None
    v = s.values[x]

    def fits(w: Tensor) -> bool:
        return w is not v and w.dtype == v.dtype and w.shape == v.shape

    y = s.pick(fits) or x
    d = s.random.randrange(max(1, v.dim()))
    forms = ["{0} + {1}", "{0} * {1}.sigmoid()", "torch.lerp({0}, {1}, 0.3)"]
    if v.dim():
        forms += [f"torch.cat([{{0}}, {{1}}], {d})", f"torch.stack([{{0}}, {{1}}], {d})"]
    if v.dtype.itemsize > 2:
        forms += ["torch.where({0} > {1}, {0}, {1} * 0.5)", "torch.maximum({0}, {1} * 0.7)"]
    return s.add("combine", f"{{out}} = {s.random.choice(forms)}", x, y)


def in_place(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1 and not (v.is_leaf and v.requires_grad))
    if x is None:
        return None
    v = s.values[x]
    y = s.pick(lambda w: w is not v and w.dtype == v.dtype and w.shape == v.shape) or x
    forms = [
        "{out} = {0}.add_({1})",
        "{out} = {0}.mul_(0.5)",
        "{out} = {0}.clone(); {out}[..., ::2].copy_({1}[..., ::2])",
        "{out} = {0}.clone(); {out}[..., :1].add_({1}[..., :1])",
        "{out} = torch.zeros_like({0}); {out}.copy_({0} * 2 + {1})",
        "{out} = {0} + 1; {out}.sub_({1}).tanh_()",
        "{out} = {0}.clone(); {out}.view(-1).mul_(2)",
        "{out} = {0}.masked_fill_({1}.detach() > 1, 0.5)",
    ]
    if v.dtype.itemsize > 2:
        forms += ["{out} = {0}.relu_()", "{out} = F.relu({0}.clone(), inplace=True)"]
    return s.add("in place", s.random.choice(forms), x, y)


def gradient_flow(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1 and v.shape[-1] > 0)
    if x is None:
        return None
    c = s.values[x].shape[-1]
    weight, held = held_tensor(s, (c, c), dtype_of(s, x))
    forms = [
        "{out} = {0}.detach() + {0} * 0.5",
        f"{{out}} = {{0}}.detach() @ {weight}",
        f"with torch.no_grad(): {{out}} = {{0}} @ {weight}",
        f"{{out}} = {{0}} @ {weight}.detach()",
        "{out} = F.dropout({0}, 0.0, self.training)",
    ]
    return s.add("gradient flow", s.random.choice(forms), x, held=(held,))


def cast(s: Scope) -> str | None:
    x = s.pick()
    if x is None:
        return None
    dtype = s.choose("F64", "F32", "F32", "BF16", "F16")
    # A copy where nothing is cast, too: in the form that is float64 throughout, nothing is.
    return s.add("cast", f"{{out}} = {{0}}.to({dtype}, copy=True)", x)


def constant(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1 and v.shape[-1] > 0)
    if x is None:
        return None
    c, cast_to = s.values[x].shape[-1], dtype_of(s, x)
    forms = [
        f"{{0}} * torch.linspace(-1, 1, {c}, dtype={cast_to})",
        f"{{0}} + torch.arange({c}, dtype={cast_to}) * 0.1",
        f"{{0}} + torch.tensor([0.25] * {c}, dtype={cast_to})",
        f"{{0}} @ torch.tensor([[0.5, -1.0]] * {c}, dtype={cast_to})",
        f"{{0}} @ torch.full(({c}, 4), 0.25, dtype={cast_to})",
    ]
    return s.add("constant", f"{{out}} = {s.random.choice(forms)}", x)


def reduce(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 2 and v.numel() > 0)
    if x is None:
        return None
    d = s.random.randrange(s.values[x].dim())
    forms = [
        f"{{0}}.mean({d})",
        f"{{0}}.sum({d}, keepdim=True) * 0.5",
        f"torch.softmax({{0}}, {d})",
        f"{{0}}.cumsum({d}) * 0.3",
        f"{{0}}.logsumexp({d})",
    ]
    return s.add("reduce", f"{{out}} = {s.random.choice(forms)}", x)


def embedding(s: Scope) -> str | None:
    names = [n for n, v in s.values.items() if v.dtype == torch.int64]
    if not names:
        return None
    floats = [dtype_of(s, n) for n, v in s.values.items() if v.is_floating_point()]
    make = f"nn.Embedding(7, {s.size()}, dtype={s.choose(*floats) if floats else 'F32'})"
    table, held = layer(s, "table", make)
    x = s.random.choice(names)
    return s.add("embedding", f"{{out}} = {table}({{0}})", x, held=(held,))


PLUMBING: dict[Writer, float] = {
    activation: 2.5,
    norm: 1.5,
    view: 4,
    combine: 2.5,
    in_place: 1.2,
    gradient_flow: 0.7,
    constant: 0.5,
    reduce: 0.5,
    embedding: 0.8,
}

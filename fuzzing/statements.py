"""Statements that hold products: layers, functional products, convolutions, attention.

Each writer looks at the values of a scope, adds at most one statement and returns its value's name,
or None where nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fuzzing.builder import NAMES, Scope

Writer = Callable[[Scope], "str | None"]


def dtype_of(s: Scope, name: str) -> str:
    return NAMES[s.values[name].dtype]


def held_tensor(s: Scope, shape: tuple[int, ...], dtype: str) -> tuple[str, tuple[str, str]]:
    """A parameter, a frozen parameter or a buffer: (how it is read, what the module holds)."""
    fan = max(1, shape[-1] if len(shape) == 1 else shape[-2])
    data = f"(torch.randn({', '.join(map(str, shape))}) / {fan**0.5:.3g}).to({dtype})"
    kind = s.choose("nn.Parameter({})", "nn.Parameter({})", "nn.Parameter({})", "nn.Buffer({})")
    frozen = "nn.Parameter({}, requires_grad=False)"
    name = s.name("w")
    return f"self.{name}", (name, (frozen if s.chance(0.1) else kind).format(data))


def layer(s: Scope, stem: str, constructor: str) -> tuple[str, tuple[str, str]]:
    """A layer of the module, sometimes frozen."""
    name = s.name(stem)
    frozen = ".requires_grad_(False)" if s.chance(0.08) else ""
    return f"self.{name}", (name, constructor + frozen)


def linear(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1 and v.shape[-1] > 0)
    if x is None:
        return None
    bias, cast = s.chance(0.7), dtype_of(s, x)
    make = f"nn.Linear({s.values[x].shape[-1]}, {s.size()}, bias={bias}, dtype={cast})"
    fc, held = layer(s, "fc", make)
    if s.chance(0.15):  # the same module twice, or its weight alone
        again = s.choose(f"{fc}({{0}}) + {fc}({{0}}.tanh())", f"F.linear({{0}}, {fc}.weight)")
        return s.add("linear twice", f"{{out}} = {again}", x, held=(held,))
    return s.add("linear", f"{{out}} = {fc}({{0}})", x, held=(held,))


def autocast(s: Scope) -> str | None:
    """A layer in 16 bits whose input and parameters are in float32."""
    x = s.pick(lambda v: v.dim() >= 1 and v.shape[-1] > 0 and v.dtype == torch.float32)
    if x is None:
        return None
    fc, held = layer(s, "fc", f"nn.Linear({s.values[x].shape[-1]}, {s.size()}, dtype=F32)")
    dtype = s.choose("BF16", "BF16", "F16")
    code = f"with torch.autocast('cpu', {dtype}): {{out}} = {fc}({{0}})"
    if s.chance(0.4):
        code = f"with torch.autocast('cpu', {dtype}): {{out}} = F.gelu({fc}({{0}})) @ {fc}.weight"
    return s.add("autocast", code, x, held=(held,))


def shared(s: Scope) -> str | None:
    """A layer that an earlier statement holds, once more."""
    earlier = [h for st in s.statements for h in st.held if h[1].startswith(("nn.Lin", "nn.Conv"))]
    if not earlier:
        return None
    held = s.random.choice(earlier)
    weight: Tensor = getattr(s.module, held[0]).weight
    x = s.pick(lambda v: v.dtype == weight.dtype and v.dim() >= weight.dim() - 1)
    if x is None:
        return None
    code = f"{{out}} = self.{held[0]}({{0}})"
    if weight.dim() == 2 and s.chance(0.3):  # tied: the transposed weight
        code = f"{{out}} = {{0}} @ self.{held[0]}.weight"
    return s.add("shared layer", code, x, held=(held,))


def weight_product(s: Scope) -> str | None:
    """A functional product with a parameter or a buffer."""
    x = s.pick(lambda v: v.dim() >= 2 and v.shape[-1] > 0)
    if x is None:
        return None
    shape, o, cast = s.values[x].shape, s.size(16), dtype_of(s, x)
    c = shape[-1]
    forms: list[tuple[tuple[int, ...], str]] = [
        ((c, o), "torch.matmul({0}, W)"),
        ((o, c), "F.linear({0}, W)"),
        ((o, c), "{0} @ W.mT"),
        ((o, shape[-2]), "torch.matmul(W, {0})"),
        ((c, o), "torch.einsum('...i,io->...o', {0}, W)"),
        ((2, c, o), "torch.einsum('...i,hio->h...o', {0}, W)"),
        ((c, o), "torch.tensordot({0}, W, 1)"),
        ((c,), "{0} @ W"),
    ]
    if len(shape) == 2:
        forms += [
            ((c, o), "torch.mm({0}, W)"),
            ((o, c), "torch.addmm({0}.mean(), {0}, W.t())"),
            ((c, c), "torch.addmm({0}, {0}, W, beta=0.5, alpha=2)"),
            ((c, c), "torch.addmm({0}, {0}, W)"),
        ]
    if len(shape) == 3:
        b, t = shape[0], shape[1]
        forms += [
            ((b, c, o), "torch.bmm({0}, W)"),
            ((b, c, c), "torch.baddbmm({0}, {0}, W)"),
            ((b, c, c), "torch.baddbmm({0}, {0}, W, beta=0.5, alpha=0.7)"),
            ((t, c, o), "torch.einsum('bti,tio->bto', {0}, W)"),
            ((o, t), "torch.einsum('ot,bti->boi', W, {0})"),
            ((o, c), "torch.einsum('bti,oi->bot', {0}, W)"),
            ((b, o, c), "torch.matmul({0}, W.transpose(1, 2))"),
        ]
    size, form = s.random.choice(forms)
    if 0 in size:
        return None
    weight, held = held_tensor(s, size, cast)
    if s.chance(0.15):
        weight = s.choose(f"({weight} * 0.5)", f"torch.tanh({weight})", f"{weight}.clone()")
    return s.add("weight product", f"{{out}} = {form.replace('W', weight)}", x, held=(held,))


def activation_product(s: Scope) -> str | None:
    """A product of two activations, of one with itself, or with a constant."""
    x = s.pick(lambda v: v.dim() >= 2)
    if x is None:
        return None
    v, c = s.values[x], s.values[x].shape[-1]
    scale = max(1, c) ** -0.5
    y = s.pick(lambda w: w.dtype == v.dtype and w.dim() == v.dim() and w.shape == v.shape) or x
    forms = [
        f"{{0}} @ {{1}}.mT * {scale:.3g}",
        f"torch.matmul({{0}}.mT, {{1}}) * {scale:.3g}",
        f"torch.einsum('...ti,...si->...ts', {{0}}, {{1}}) * {scale:.3g}",
        f"torch.einsum('...ti,...tj->...ij', {{0}}, {{1}}) * {scale:.3g}",
        f"({{0}} * {scale:.3g}) @ torch.ones({c}, 4, dtype={dtype_of(s, x)})",
        f"torch.eye({c}, dtype={dtype_of(s, x)}) @ {{0}}.mT + 0 * {{1}}.mT",
        "{0} @ torch.softmax({1}.mT @ {0}, -1)",
        f"torch.matmul({{0}}, {{1}}.flatten()[:{c}] * {scale:.3g})",
    ]
    if v.dim() == 3:
        forms += [
            f"torch.bmm({{0}}, {{1}}.mT) * {scale:.3g}",
            f"torch.baddbmm({{0}} @ {{0}}.mT, {{0}}, {{1}}.mT, alpha={scale:.3g})",
        ]
    return s.add("activation product", f"{{out}} = {s.random.choice(forms)}", x, y)


def convolution(s: Scope) -> str | None:
    rank = s.choose(1, 2, 2, 3)
    x = s.pick(lambda v: v.dim() == rank + 2 and v.shape[1] > 0)
    if x is None:
        return None
    v, transposed, cast = s.values[x], s.chance(0.3), dtype_of(s, x)
    c, o = v.shape[1], s.size(16)
    groups = s.choose(1, 1, 1, 2, 4, c)
    if c % groups:
        groups = 1
    o = max(groups, o - o % groups) if groups < c or s.chance(0.3) else c
    kernel = tuple(s.choose(1, 1, 2, 3) for _ in range(rank)) if s.chance(0.8) else (1,) * rank
    stride = tuple(s.choose(1, 1, 2) for _ in range(rank)) if s.chance(0.4) else (1,) * rank
    dilation = s.choose(1, 1, 1, 2)
    padding = tuple(s.choose(0, k // 2, k // 2) * dilation for k in kernel)
    options = f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}"
    if transposed:
        extra = tuple(s.choose(0, t - 1) if t > 1 else 0 for t in stride)
        options += f", output_padding={extra}"
    elif set(stride) == {1} and s.chance(0.15):
        options = f"padding='same', dilation={dilation}, groups={groups}"
    kind = f"Conv{'Transpose' if transposed else ''}{rank}d"
    if s.chance(0.7):
        bias = s.chance(0.6)
        make = f"nn.{kind}({c}, {o}, {kernel}, bias={bias}, {options}, dtype={cast})"
        conv, held = layer(s, "conv", make)
        return s.add(kind, f"{{out}} = {conv}({{0}})", x, held=(held,))
    shape = (c, o // groups, *kernel) if transposed else (o, c // groups, *kernel)
    weight, held = held_tensor(s, shape, cast)
    function = f"conv{'_transpose' if transposed else ''}{rank}d"
    code = f"{{out}} = F.{function}({{0}}, {weight}, None, {options})"
    return s.add(function, code, x, held=(held,))


def attention(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() in (3, 4) and v.numel() > 0)
    if x is None:
        return None
    v = s.values[x]
    y = s.pick(lambda w: w.dtype == v.dtype and w.shape == v.shape) or x
    forms = [
        "F.scaled_dot_product_attention({0}, {1}, {0})",
        "F.scaled_dot_product_attention({0}, {1}, {1}, is_causal=True)",
        "F.scaled_dot_product_attention({0}.tanh(), {0}, {1}, attn_mask=torch.ones("
        f"{v.shape[-2]}, {v.shape[-2]}, dtype=torch.bool).tril())",
        "torch.softmax({0} @ {1}.mT * 0.3, -1) @ {1}",
        "torch.softmax(torch.einsum('...td,...sd->...ts', {0}, {1}) * 0.3, -1) @ {0}",
    ]
    return s.add("attention", f"{{out}} = {s.random.choice(forms)}", x, y)


def attention_module(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() == 3 and v.shape[-1] in (4, 8, 12, 16, 20) and v.numel() > 0)
    if x is None:
        return None
    c, cast = s.values[x].shape[-1], dtype_of(s, x)
    options = f"batch_first=True, dtype={cast}"
    if s.chance(0.3):
        make = f"nn.TransformerEncoderLayer({c}, 2, 8, dropout=0.0, {options})"
        block, held = layer(s, "layer", make)
        return s.add("transformer layer", f"{{out}} = {block}({{0}})", x, held=(held,))
    mha, held = layer(s, "mha", f"nn.MultiheadAttention({c}, 2, {options})")
    weights = s.choose(True, False)
    code = f"{{out}} = {mha}({{0}}, {{0}}, {{0}}, need_weights={weights})[0]"
    return s.add("multi-head attention", code, x, held=(held,))


def bilinear(s: Scope) -> str | None:
    x = s.pick(lambda v: v.dim() >= 1 and 0 < v.shape[-1] <= 8)
    if x is None:
        return None
    c = s.values[x].shape[-1]
    layer_, held = layer(s, "bi", f"nn.Bilinear({c}, {c}, {s.size(8)}, dtype={dtype_of(s, x)})")
    return s.add("bilinear", f"{{out}} = {layer_}({{0}}, {{0}}.tanh())", x, held=(held,))


PRODUCTS: dict[Writer, float] = {
    linear: 5,
    shared: 1.2,
    weight_product: 3,
    activation_product: 1.5,
    convolution: 4,
    attention: 1,
    attention_module: 0.5,
    bilinear: 0.15,
}

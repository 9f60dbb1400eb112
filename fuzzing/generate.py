"""A random network from a seed: inputs, sometimes blocks (called once, twice, checkpointed)."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.builder import NAMESPACE, Scope, finish
from fuzzing.execute import run
from fuzzing.network import DTYPES, Block, Input, Network, live_statements, load, module_lines
from fuzzing.plumbing import PLUMBING, cast
from fuzzing.statements import PRODUCTS, Writer, autocast
from fuzzing.structures import STRUCTURES

#: Chance that a network mixes dtypes; the others are in float64 throughout.
MIXED = 0.4


def generate(seed: int) -> Network:
    """The network of this seed, always the same."""
    chance = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while True:
            network = _attempt(chance, seed)
            if network is not None:
                return network


def _attempt(chance: random.Random, seed: int) -> Network | None:
    scope = Scope(chance, "v")
    mixed = chance.random() < MIXED
    inputs = _inputs(scope, mixed)
    writers: dict[Writer, float] = {
        **PRODUCTS,
        **PLUMBING,
        **STRUCTURES,
        **({cast: 2, autocast: 1} if mixed else {}),
    }
    blocks: list[Block] = []
    wanted = chance.randint(3, 12)
    for _ in range(4 * wanted):
        if len(scope.statements) >= wanted:
            break
        if chance.random() < 0.1:
            _call_block(scope, writers, blocks)
        else:
            _write(scope, writers)
    if not scope.statements:
        return None
    network = finish(scope, inputs, blocks, seed)
    return network if network is not None and _trains(network) else None


def _trains(network: Network) -> bool:
    """Whether eager PyTorch runs it forward and backward, to finite numbers; in float64, too."""
    try:
        results = [*run(load(network)), *run(load(network, wide=True, checkpoints=False))]
        if any(b.region for b in network.blocks):  # not every one that PyTorch itself can capture
            program = load(network)
            torch._dynamo.reset()
            torch.compile(program.model, backend="eager", fullgraph=True)(*program.inputs)
    except (RuntimeError, AssertionError):
        return False
    return all(bool(r.isfinite().all()) for r in results if r is not None)


def _write(scope: Scope, writers: dict[Writer, float]) -> str | None:
    writer = scope.random.choices(list(writers), list(writers.values()))[0]
    return writer(scope)


def _inputs(s: Scope, mixed: bool) -> list[Input]:
    found = []
    for number in range(s.choose(1, 1, 2)):
        dtype = s.choose("F32", "F32", "BF16", "F16", "F64") if mixed else "F64"
        b, c = s.choose(1, 2, 2, 3, 4), s.choose(1, 3, 4, 6, 8, 8, 16)
        t = s.choose(1, 2, 4, 5, 8)
        shape = s.choose(
            (b, c), (b * t, c), (b, t, c), (b, t, c), (b, c, t), (b, c, 4, 4), (b, c, 3, 5),
            (b, c, 2, 3, 2), (b, 2, t, c),
        )  # fmt: skip
        code = f"torch.randn({', '.join(map(str, shape))}, generator=g)"
        if s.chance(0.15):
            code = f"torch.randn({', '.join(map(str, shape[::-1]))}, generator=g)"
            code += f".permute({', '.join(map(str, reversed(range(len(shape)))))})"
        elif len(shape) == 4 and s.chance(0.4):
            code += ".to(memory_format=torch.channels_last)"
        code += f".to({dtype})"
        found.append(Input(f"x{number}", code, s.chance(0.6)))
    if s.chance(0.2):
        shape = s.choose((2, 3), (5,), (1, 4))
        found.append(Input("ids", f"torch.randint(7, {shape}, generator=g)"))
    for i in found:
        g = torch.Generator().manual_seed(0)
        value: Tensor = eval(i.code, {"torch": torch, "g": g, **DTYPES})
        s.input(i.name, value.requires_grad_(i.requires_grad))
    return found


def _call_block(scope: Scope, writers: dict[Writer, float], blocks: list[Block]) -> None:
    """Write a module of its own and call it: once, twice, or checkpointed."""
    x = scope.pick(lambda v: v.dim() >= 1)
    if x is None:
        return
    name = f"Block{len(blocks)}"
    inner = Scope(scope.random, "h", scope)
    inner.input("x", scope.values[x].detach().clone().requires_grad_())
    for _ in range(scope.choose(1, 2, 3, 4)):
        _write(inner, writers)
    output = _end(inner)
    if output is None:
        return
    statements = live_statements(tuple(inner.statements), (output,))
    block = Block(name, ("x",), statements, output, scope.chance(0.3))
    scope.blocks[name] = _load(block, scope)
    attribute = name.lower()
    forms = [
        f"{{out}} = self.{attribute}({{0}})",
        f"{{out}} = self.{attribute}({{0}}) + self.{attribute}({{0}}.tanh())",
    ]
    if not block.region:  # which no checkpoint may hold
        forms.append(f"{{out}} = checkpoint(self.{attribute}, {{0}}, use_reentrant=False)")
    if scope.add("block", scope.random.choice(forms), x, held=((attribute, f"{name}()"),)):
        blocks.append(block)


def _end(inner: Scope) -> str | None:
    floats = [s.out for s in inner.statements if inner.values[s.out].is_floating_point()]
    return floats[-1] if floats else None


def _load(block: Block, scope: Scope) -> type[nn.Module]:
    space: dict[str, Any] = {**NAMESPACE, **DTYPES, **scope.blocks}
    lines = module_lines(block.name, block.inputs, block.statements, block.output, block.region)
    exec("\n".join(lines), space)
    made: type[nn.Module] = space[block.name]
    return made

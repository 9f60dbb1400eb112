"""Compiled training steps that run sparse, on small layers.

Sparse tensor cores against the simulation of the same masks (section ``kernels``), and whether CUDA
graphs draw anew (``graphs``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import nmcompile
from benchmarks.gpu_check.cases.inputs import DTYPES, relative_error, word
from benchmarks.gpu_check.events import Case, Session
from nmcompile import Policy

#: Sparse products round once more or less often than dense ones, in 16 bits.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
#: Any gain is enough: every site with a sparse form takes it.
_ALWAYS = 1e-6
Results = dict[str, Tensor]


def cases(rehearse: bool) -> list[Case]:
    """Sparse against simulated for each dtype, and CUDA graphs."""
    same = {"section": "kernels", "parallel": True, "seconds": 10, "limit": 120}
    found = [
        Case(name=f"compiled {word(d)}", run=partial(against_simulation, dtype=d), **same)
        for d in DTYPES
    ]
    found.append(Case("graphs", "masks", cuda_graphs, seconds=8, limit=60))
    return found


class Layers(nn.Module):
    """Two linear layers of one activation, elementwise work before and after them.

    What is pruned, here the activation and the gradients of a linear loss, is no result of a
    product: so sparse and simulated steps draw the same masks, whatever the products' rounding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.a = nn.Linear(width, 2 * width)
        self.b = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # [T, W], [T, 2 W] to [T, 3 W]
        h = nn.functional.gelu(x) * self.scale
        return torch.cat((self.a(h) * gate, self.b(h)), dim=1)


def _step(model: nn.Module, run: Callable[..., Tensor], x: Tensor, seed: int | None) -> Results:
    """Output and gradients of one step; ``seed`` None goes on from the last step's."""
    if seed is not None:
        torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    leaf = x.clone().requires_grad_()
    y = run(leaf, torch.cat((x, -x), dim=1).sigmoid())
    weights = torch.linspace(-1, 2, y.numel(), device=y.device).sin().view(y.shape)
    (y.float() * weights).sum().backward()
    gradients = {"x": leaf.grad, **{name: p.grad for name, p in model.named_parameters()}}
    found = {name: g.clone() for name, g in gradients.items() if g is not None}
    return {"output": y.detach().clone(), **found}


def _compiled(
    session: Session, model: nn.Module, execution: str, mode: str
) -> Callable[..., Tensor]:
    policy = Policy(extends="full", execution=execution, fallback="error", margin=_ALWAYS)
    options = {"policy": policy, **torch._inductor.list_mode_options(mode)}
    if session.device.rehearsal:
        options["nm.kernels"] = "generate"
    return torch.compile(model, backend=nmcompile.nm_sparse, options=options, dynamic=False)


def against_simulation(session: Session, dtype: torch.dtype) -> None:
    """Output and gradients with the same seed; every site must have run sparse."""
    width, name = (32 if session.device.rehearsal else 256), session.device.name
    torch.manual_seed(0)
    model = Layers(width).to(name, dtype)
    x = torch.randn(2 * width, width, device=name, dtype=dtype)
    results = {}
    for execution in ("simulate", "sparse"):
        torch._dynamo.reset()
        twin = copy.deepcopy(model)
        results[execution] = _step(twin, _compiled(session, twin, execution, "default"), x, 7)
        how = {s.execution for s in nmcompile.last_report().sites if s.pruned}
        session.check(f"every pruned site: {execution}", how == {execution}, str(how))
    for key, simulated in results["simulate"].items():
        error = relative_error(results["sparse"][key], simulated)
        bound = _TOLERANCE[dtype]
        session.check(key, error <= bound, f"relative error {error:.2g}, bound {bound:g}")


def cuda_graphs(session: Session) -> None:
    """Replays give the same output and other random masks; a seed gives the same masks again."""
    width, name = (32 if session.device.rehearsal else 256), session.device.name
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Layers(width).to(name, torch.bfloat16)
    x = torch.randn(2 * width, width, device=name, dtype=torch.bfloat16)
    run = _compiled(session, model, "sparse", "reduce-overhead")

    def step(seed: int | None) -> Results:
        torch.compiler.cudagraph_mark_step_begin()
        return _step(model, run, x, seed)

    for _ in range(3):  # runs, then records, then replays
        step(1)
    first, again, other, next_ = step(1), step(1), step(2), step(None)
    for name, equal in (("same seed", again), ("another seed", other), ("next step", next_)):
        session.check(f"output, {name}", torch.equal(first["output"], equal["output"]))
    session.check("same seed", torch.equal(first["a.weight"], again["a.weight"]))
    session.check("another seed", not torch.equal(first["a.weight"], other["a.weight"]))
    # Without a new seed the generator moves on, in a replay too.
    session.check("next step", not torch.equal(other["a.weight"], next_["a.weight"]))

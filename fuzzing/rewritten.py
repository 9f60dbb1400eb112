"""A network's training step traced by hand, and rewritten by ``nmcompile.rewrite``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from fuzzing.case import Case
from fuzzing.execute import Results, leaves
from fuzzing.network import load
from fuzzing.policies import policy_of
from fuzzing.simulation import Simulation


class RewrittenNetwork:
    """The step of a network: its inputs, parameters and buffers to its loss and gradients."""

    def __init__(self, case: Case) -> None:
        self._case = case
        program = load(case.network, checkpoints=False)
        names = [name for name, _ in program.model.named_parameters()]

        def step(state: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, Any]:
            loss = loss_of(functional_call(program.model, state, tuple(inputs)))
            every = [*inputs, *(state[name] for name in names)]
            wanted = [x for x in every if x.requires_grad]
            return loss.detach(), torch.autograd.grad(loss, wanted, allow_unused=True)

        arguments = self._arguments()
        weights = "state_*" if arguments[0] else []
        traced = make_fx(step)(*arguments)
        #: Whether the graph holds tensors of the code: weights here, but not to Dynamo.
        self.holds_tensors = any(node.op == "get_attr" for node in traced.graph.nodes)
        self._step = nmcompile.rewrite(traced, policy_of(case.rules), weights=weights)

    @property
    def sites(self) -> list[Any]:
        return list(self._step.meta["nm_report"].sites)

    def run(self) -> Results:
        """The loss, then the gradients, from the same state each time."""
        loss, grads = self._step(*self._arguments())
        return [loss, *grads]

    def _arguments(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        program = load(self._case.network, checkpoints=False)
        model = program.model
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}, program.inputs


def loss_of(outputs: Any) -> Tensor:
    """A scalar, at which autograd's own seed starts the gradients that ``rewrite`` looks for."""
    ends = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    total = torch.zeros((), dtype=torch.float64)
    for y in ends:
        weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().view(y.shape)
        total = total + (y.double() * weights).sum()
    return total


def simulate_step(case: Case) -> tuple[Simulation, Results]:
    """The same step in eager mode; random masks are left out."""
    program = load(case.network, checkpoints=False)
    simulation = Simulation(program.model, program.inputs, case.rules, expected=True)
    with simulation.paths(), simulation:
        loss = loss_of(program.model(*program.inputs))
        start = torch.ones_like(loss)
        simulation.tag(start, "gradient")
        grads = torch.autograd.grad(loss, leaves(program), start, allow_unused=True)
    return simulation, [loss.detach(), *grads]


def without_paths(case: Case) -> Case:
    """Its rules without conditions on modules, of which a step traced by hand knows nothing."""
    rules = [{k: v for k, v in r.items() if k not in ("module", "class")} for r in case.rules]
    return replace(case, rules=rules)

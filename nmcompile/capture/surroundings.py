"""Where a graph is compiled, and whether its inputs may be gradients there.

Nothing in a graph tells a gradient from an activation that comes in beside it. Outside of what is
named here inputs are taken for activations.
"""

from __future__ import annotations

from torch import fx

from nmcompile._dynamo import differentiates, surroundings
from nmcompile.reason import Code, Reason

_CODES = {
    "engine": Code.IN_ENGINE,
    "function": Code.IN_FUNCTION,
    "optimizer": Code.IN_OPTIMIZER,
}
_TEXTS = {
    "engine": (
        "{name} runs inside of the autograd engine (the backward of a custom Function, or a hook), "
        "where an input may be a gradient. Let Dynamo trace the Function together with the model, "
        "without a graph break, and its products get their roles"
    ),
    "function": (
        "it runs in the forward of the autograd.Function {name}, which may compute gradients. Let "
        "Dynamo trace the Function together with the model, without a graph break, and its "
        "products get their roles"
    ),
    "optimizer": "it runs in the step of the optimizer {name}, on gradients of parameters",
}


_DIFFERENTIATES = Reason(
    Code.TAKES_DERIVATIVES,
    "the graph takes derivatives itself (torch.func.grad, torch.autograd.grad inside of it), and "
    "nothing tells its gradients from activations. Compile the forward alone, or trace the step "
    "with make_fx for nmcompile.rewrite",
)


def doubt(gm: fx.GraphModule) -> Reason | None:
    """Why an input of the graph that Dynamo is compiling now may be a gradient, if it may.

    Or, where the graph takes derivatives itself, any value in it.
    """
    what, name = surroundings()
    if what:
        return Reason(_CODES[what], _TEXTS[what].format(name=name or "a function"))
    return _DIFFERENTIATES if differentiates(gm) else None

"""Where a graph is compiled, and whether its inputs may be gradients there.

Nothing in a graph tells a gradient from an activation that comes in beside it. Outside of what is
named here inputs are taken for activations.
"""

from __future__ import annotations

from nmcompile._dynamo import surroundings
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


def doubt_of_surroundings() -> Reason | None:
    """Why an input of the function that Dynamo is compiling now may be a gradient, if it may."""
    what, name = surroundings()
    return Reason(_CODES[what], _TEXTS[what].format(name=name or "a function")) if what else None

"""``nmcompile.explain``: what a policy would do to a model, without generating machine code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import fx

from nmcompile._dynamo import BackendCompilerFailed, Caller
from nmcompile.capture.regions import region_of
from nmcompile.errors import NMError
from nmcompile.execution.targets import Target, named
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import plan_only
from nmcompile.policy import Policy
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.saved import saved_for_backward


def explain(
    model: Callable[..., Any],
    *args: Any,
    policy: str | PathLike[str] | Policy | Mapping[str, Any] | None = None,
    target: str | Target | None = None,
    **kwargs: Any,
) -> Report:
    """Report what the policy does to every product of ``model(*args, **kwargs)``.

    The model is traced and run once, operator by operator; its buffers and the random state of
    the CPU are put back. In training mode (gradients on and something that requires them) the
    backward products are reported too.

    With a ``target`` everything is decided as for that GPU, whatever the tensors are on: real ones,
    on the meta device, or fake ones (``FakeTensorMode``), which take no memory. The report then has
    predicted times, the kernels that would be generated, and totals. The graph is that of the
    tensors' device, and differs from a GPU's where PyTorch decomposes operators differently there
    (attention on the CPU and on meta, say).

    Args:
        model: a module or a function.
        args: its inputs.
        policy: a recipe's name, a path, a ``Policy`` or a mapping; None means ``full``.
        target: a name of ``nmcompile.targets()``; None for the device that the tensors are on.
        kwargs: its keyword inputs.

    Raises:
        OptionError: a target that is not known.
        PolicyError: the policy cannot be read, or asks for what a site cannot have.
    """
    chosen = Policy.resolve(policy)
    place = None if target is None else named(target)
    graphs: list[GraphReport] = []

    def capture(gm: fx.GraphModule, inputs: list[Any]) -> Any:
        settings = Settings(chosen, region=region_of(Caller.of(capture)), target=place)
        planned = plan_only(gm, inputs, settings)
        found: dict[str, Any] = {"saved": saved_for_backward(planned.graphs)}
        if place is not None:
            found["kernel_specs"] = tuple(planned.kernels())
        graphs.extend(r.model_copy(update=found) for r in planned.reports)
        return planned.run

    plain = getattr(model, "_orig_mod", model)  # an already compiled module is explained afresh
    modules = [plain] if isinstance(plain, torch.nn.Module) else []
    buffers = [(b, b.detach().clone()) for m in modules for b in m.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.compile(_fresh(plain), backend=capture, dynamic=False)(*args, **kwargs)
    except BackendCompilerFailed as error:
        if isinstance(error.inner_exception, NMError):
            raise error.inner_exception from None
        raise
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return Report.of(chosen, tuple(graphs), target=place)


_calls = itertools.count()


def _fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """A caller with a code object of its own: no earlier compilation changes what is captured."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"explain_{next(_calls)}")
    return call

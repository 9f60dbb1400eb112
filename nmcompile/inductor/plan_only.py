"""Trace, rewrite and partition a captured graph, and interpret it instead of compiling it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from nmcompile import _torch
from nmcompile.capture.inputs import Capture
from nmcompile.inductor.hooks import JointPass
from nmcompile.inductor.interpreter import DenseInterpreter
from nmcompile.inductor.options import Settings
from nmcompile.report.report import GraphReport


class Planned(NamedTuple):
    """A graph that was planned but not compiled: ``run`` interprets it."""

    run: Any
    reports: list[GraphReport]
    graphs: list[fx.Graph]  # after the partitioner: forward and backward, or the inference graph


def plan_only(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    settings: Settings,
    interpreter: type[fx.Interpreter] = DenseInterpreter,
) -> Planned:
    """Trace, rewrite and partition, but interpret the graphs instead of generating code.

    By default without their masks, for which kernels would have to be built.
    """
    joint = JointPass(settings, Capture.of(gm, inputs), build_kernels=False)
    graphs: list[fx.Graph] = []

    def interpret(inner: fx.GraphModule, *_: Any, **__: Any) -> Any:
        graphs.append(inner.graph)

        def run(args: list[Any]) -> Any:
            return interpreter(inner).boxed_run(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    eager_backward = {"force_non_lazy_backward_lowering": True}
    with _torch.functorch_config.patch(enable_autograd_cache=False, **eager_backward):
        patches = {**settings.inductor, "joint_custom_pre_pass": joint}
        compiled = _torch.compile_fx(gm, inputs, patches, inner=interpret)
    return Planned(compiled, joint.reports, graphs)

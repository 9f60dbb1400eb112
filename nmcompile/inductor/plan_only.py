"""Trace, rewrite and partition a captured graph, and interpret it instead of compiling it."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from nmcompile import _torch
from nmcompile.capture.inputs import Capture
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.mask_spec import MaskSpec
from nmcompile.errors import NMWarning
from nmcompile.graph.higher_order import reachable
from nmcompile.inductor.hooks import FindKept, JointPass
from nmcompile.inductor.interpreter import DenseInterpreter
from nmcompile.inductor.kept_inputs import masks_appended, with_full_masks
from nmcompile.inductor.options import Settings
from nmcompile.passes import pipeline
from nmcompile.passes.lower_kernels import mask_nodes, mask_spec
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run
from nmcompile.report.report import GraphReport
from nmcompile.report.rows import KeptRow


class Planned(NamedTuple):
    """A graph that was planned but not compiled: ``run`` interprets it."""

    run: Any
    reports: list[GraphReport]
    graphs: list[fx.Graph]  # after the partitioner: forward and backward, or the inference graph

    def kernels(self) -> list[KernelSpec | MaskSpec]:
        """The kernels that would be generated for these graphs on a GPU, one for each launch."""
        specs: list[KernelSpec | MaskSpec] = []
        for graph in itertools.chain.from_iterable(map(reachable, self.graphs)):
            copied = copy.deepcopy(graph)  # the one that is interpreted stays as it is
            devices = {v.device.type for n in copied.nodes if (v := _tensor(n)) is not None}
            kernels = Kernels(copied, tuple(sorted(devices)), lower=False)
            run(pipeline.POST_GRAD, kernels, "post-grad graph")
            masks = map(mask_spec, mask_nodes(copied))
            specs += [*kernels.specs, *filter(None, masks)]
        return specs


def plan_only(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    settings: Settings,
    interpreter: Callable[[fx.GraphModule], Any] = DenseInterpreter,
) -> Planned:
    """Trace, rewrite and partition, but interpret the graphs instead of generating code.

    By default without their masks, for which kernels would have to be built.
    """
    capture = Capture.of(gm, inputs)
    rows = kept_rows(gm, inputs, settings, capture)
    capture = capture.with_masks([(row.input, row.stored) for row in rows])
    joint = JointPass(settings, capture, build_kernels=False)
    with masks_appended(gm, inputs, rows) as given:
        planned = interpreted(gm, given, joint, interpreter)
    return planned._replace(run=with_full_masks(planned.run, rows))


def kept_rows(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings, capture: Capture
) -> tuple[KeptRow, ...]:
    """The kept masks that the graph needs as inputs, found before it has them."""
    if not settings.policy.keeps_masks:
        return ()
    copied = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    asked = FindKept(settings, capture, build_kernels=False)
    with warnings.catch_warnings():  # what there is to say is said when the graph is planned
        warnings.simplefilter("ignore", NMWarning)
        interpreted(copied, inputs, asked, DenseInterpreter)
    return asked.rows


def interpreted(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    joint: JointPass,
    interpreter: Callable[[fx.GraphModule], Any],
) -> Planned:
    """Trace and partition with this pass on the joint graphs; both halves are interpreted."""
    graphs: list[fx.Graph] = []

    def interpret(inner: fx.GraphModule, *_: Any, **__: Any) -> Any:
        graphs.append(inner.graph)

        def run(args: list[Any]) -> Any:
            return interpreter(inner).boxed_run(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    eager_backward = {"force_non_lazy_backward_lowering": True}
    with _torch.functorch_config.patch(enable_autograd_cache=False, **eager_backward):
        patches = {**joint.settings.inductor, "joint_custom_pre_pass": joint}
        if any(isinstance(x, torch.Tensor) and x.is_meta for x in inputs):
            # It would replace every result on the meta device by an empty tensor.
            patches["joint_graph_constant_folding"] = False
        compiled = _torch.compile_fx(gm, inputs, patches, inner=interpret)
    return Planned(compiled, joint.reports, graphs)


def _tensor(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None

"""Our passes at Inductor's hooks, and the keys of its caches.

Joint graph -> ``JointPass`` -> partitioner -> forward and backward -> ``PostPass`` on each.

A pass's ``uuid`` covers the policy, the package's sources and the captured graph with its module
paths, so that Inductor's caches stay on and stay right.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import fx

from nmcompile import _torch
from nmcompile._torch import CustomGraphPass
from nmcompile.capture.inputs import Capture
from nmcompile.codegen.loader import record_kernels, sources
from nmcompile.codegen.printer import Spec
from nmcompile.errors import owned
from nmcompile.execution.targets import fingerprint
from nmcompile.gemm import OperandKind
from nmcompile.graph.insert import mark_backward
from nmcompile.graph.subgraphs import mark_planned
from nmcompile.inductor.options import KERNELS, Settings
from nmcompile.inductor.place import Place, place_of
from nmcompile.ops.masks import warm_up
from nmcompile.ops.schemas import KeepMask, KeepMaskRagged, Prune, PruneRagged
from nmcompile.passes import pipeline
from nmcompile.passes.observe import mark_sites
from nmcompile.passes.plan import Kernels, Plan
from nmcompile.passes.run import run
from nmcompile.report.artifacts import show_kernels, show_plan
from nmcompile.report.nodes import Listing
from nmcompile.report.report import GraphReport
from nmcompile.report.rows import KeptRow


class _AfterTheUsers(CustomGraphPass):  # type: ignore[misc]
    """A pass of ours at one of Inductor's hooks, after the user's own passes there."""

    digest: str

    def __init__(self, settings: Settings, hook: str) -> None:
        configured = settings.inductor.get(hook, getattr(_torch.inductor_config, hook))
        self.before_ours = _torch.graph_passes(configured)

    def __call__(self, graph: fx.Graph) -> None:
        for user_pass in self.before_ours:
            user_pass(graph)
        with owned(type(self).__name__):
            self.run(graph)

    def run(self, graph: fx.Graph) -> None:
        """Our part."""
        raise NotImplementedError

    def uuid(self) -> Any:
        uuids = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self.before_ours]
        return None if None in uuids else (*uuids, self.digest)


class JointPass(_AfterTheUsers):
    """Runs the user's own joint pass, then ours, and keeps a report of what was done."""

    def __init__(self, settings: Settings, capture: Capture, build_kernels: bool) -> None:
        super().__init__(settings, "joint_custom_pre_pass")
        self.settings = settings
        self.capture = capture
        self.build_kernels = build_kernels
        plain = (bool, int, float, str, type(None))
        values = sorted((k, repr(v)) for k, v in settings.inductor.items() if isinstance(v, plain))
        chosen = (settings.policy.digest, settings.autotune, settings.kernels, settings.region)
        ours = (*chosen, settings.target, capture.ranks, fingerprint())
        key = (ours, sources_digest(), capture.fingerprint, torch.__version__, values)
        self.digest = hashlib.sha256(repr(key).encode()).hexdigest()
        self.reports: list[GraphReport] = []

    def run(self, graph: fx.Graph) -> None:
        place = place_of(graph, self.settings, self.capture)
        if place is None:
            return
        name, shown = self.capture.name_of_input, place.region.shown
        before = Listing.of(graph, place.kinds, name, shown)
        plan = plan_at(graph, place, self.settings, self.capture)
        run(pipeline.JOINT, plan, "joint graph")
        if self.settings.observer is not None:
            mark_sites(plan)
        mark_planned(graph)
        if self.build_kernels:
            _warm_up(graph)
        if plan.gemms or plan.skipped or not place.operator:
            report = GraphReport.of(plan, self.digest, before, name)
            self.reports.append(report)
            show_plan(report, self.settings.policy)


class FindKept(JointPass):
    """Decides what a joint graph gets, and leaves the graph as it is: which masks are kept."""

    rows: tuple[KeptRow, ...] = ()

    def run(self, graph: fx.Graph) -> None:
        place = place_of(graph, self.settings, self.capture)
        if place is not None and not place.operator:
            plan = plan_at(graph, place, self.settings, self.capture)
            run(pipeline.DECIDE, plan, "joint graph, to be given its masks")
            self.rows = KeptRow.all_of(plan, self.capture.name_of_input)


def plan_at(graph: fx.Graph, place: Place, settings: Settings, capture: Capture) -> Plan:
    """The plan of a joint graph, before any pass."""
    mark_backward(n for n, kind in place.kinds.items() if kind is OperandKind.GRADIENT)
    options = (settings.policy, settings.autotune, place.region, capture.ranks, settings.target)
    about = (place.doubt, place.operator, place.times, max(1, len(settings.region.paths)))
    inputs = _captured_inputs(graph)
    whole = {inputs[number]: number for number in capture.whole & inputs.keys()}
    masks = {key: inputs[number] for key, number in capture.masks.items() if number in inputs}
    captured = _torch.records_cuda_graphs(settings.inductor)
    place_about = place.apart, place.recomputed
    return Plan(graph, place.kinds, *options, *about, *place_about, whole, masks, captured=captured)


def _captured_inputs(graph: fx.Graph) -> dict[int, fx.Node]:
    """The inputs of a joint graph that are those of the captured one, by number."""
    found = {}
    for node in graph.find_nodes(op="placeholder"):
        what, number = _torch.input_origin(node) or ("", None)
        if what == "plain" and number is not None:
            found[number] = node
    return found


class PostPass(_AfterTheUsers):
    """Runs the user's own pass on a forward or backward graph, then generates compress kernels."""

    def __init__(self, settings: Settings, digest: str) -> None:
        super().__init__(settings, "post_grad_custom_pre_pass")
        self.devices = KERNELS[settings.kernels]
        self.lower = settings.kernels != "operators"
        self.fuse = settings.kernels != "unfused"
        self.autotune = settings.autotune
        self.observer = settings.observer
        self.digest = digest if self.observer is None else f"{digest}, meter {self.observer}"
        self.ran = False  # it does not where Inductor has the graphs in its cache

    def run(self, graph: fx.Graph) -> None:
        how = (self.devices, self.lower, self.autotune, self.fuse)
        kernels = Kernels(graph, *how, observer=self.observer)
        run(pipeline.POST_GRAD, kernels, "post-grad graph")
        specs: list[Spec] = [*kernels.specs, *kernels.masks]
        if self.observer is None:
            record_kernels(self.digest, specs)
            show_kernels(lambda: sources(specs))
        self.ran = True


def _warm_up(graph: fx.Graph) -> None:
    """Start to build the mask kernels of a graph while Inductor compiles the rest."""
    for op in (Prune, KeepMask):
        for node in op.nodes(graph):
            call = op.of(node)
            warm_up(call, call.x.meta["val"])
    for ragged in (PruneRagged, KeepMaskRagged):
        for node in ragged.nodes(graph):
            x = ragged.of(node).x
            warm_up(ragged.of(node).of_rows(x), x.meta["val"])


@functools.cache
def sources_digest() -> str:
    """A digest of every source file of the package: compiled code depends on all of them."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(
        p for p in root.rglob("*") if p.suffix in (".py", ".h", ".cpp", ".toml", ".jinja")
    ):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

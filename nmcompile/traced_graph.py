"""``nmcompile.rewrite``: the same passes on a graph that the user traced with ``make_fx``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from nmcompile._torch import FakeTensor, FakeTensorMode, is_composite, tree_map_only
from nmcompile.errors import ArgumentError, NMError, PolicyError, nearest, shown
from nmcompile.gemm import OperandKind
from nmcompile.graph.aten import Convolution, is_product, operands, view_base
from nmcompile.graph.higher_order import reachable
from nmcompile.graph.operand_kinds import operand_kinds
from nmcompile.graph.subgraphs import OUTSIDE_UNKNOWN
from nmcompile.passes import pipeline
from nmcompile.passes.plan import Plan
from nmcompile.passes.run import run
from nmcompile.policy import Policy
from nmcompile.policy.pattern import matching
from nmcompile.report.nodes import Listing
from nmcompile.report.report import GraphReport, Report

aten = torch.ops.aten


def rewrite(
    gm: fx.GraphModule,
    policy: str | PathLike[str] | Policy | Mapping[str, Any] | None = None,
    *,
    weights: str | list[str] | None = None,
) -> fx.GraphModule:
    """A copy of an aten graph (``make_fx``) with the policy's operands pruned.

    The graph may hold a whole training step: autograd's own seed, ``ones_like`` of a scalar loss,
    is where gradients start. The report is in ``result.meta["nm_report"]``.

    A graph without gradients (a forward, for example of ``torch.export``) is for inference: its
    masks have no gradient, and PyTorch warns if autograd meets one. Compile to train.

    Args:
        gm: traced by ``make_fx``, or of an exported program after ``run_decompositions()``; its
            inputs need ``meta["val"]``, which both set.
        policy: a recipe's name, a path, a ``Policy`` or a mapping; None means ``full``.
        weights: names of the placeholders that hold parameters and buffers, with ``*`` as a
            wildcard (``"params_*"``). None: those that the graph itself differentiates (whose
            weight gradient it computes), and everything held by the module.

    Raises:
        ArgumentError: not a graph.
        NMError: a pattern that names no placeholder, a graph without ``meta["val"]``, or one
            whose products are still inside of larger operators (``aten.linear``).
        PolicyError: the policy cannot be read, or asks for what a site cannot have.
    """
    if not isinstance(gm, fx.GraphModule):
        raise ArgumentError(
            f"nmcompile.rewrite takes the graph that make_fx(function)(*inputs) traces, not "
            f'{shown(gm)}; a module or a function is for torch.compile(..., backend="nm_sparse")'
        )
    chosen = Policy.resolve(policy)
    if chosen.keeps_masks:
        raise PolicyError(
            "a graph that is rewritten has no place for masks that are kept between steps: leave "
            "refresh and decay out of the policy, or compile the model"
        )
    result = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    graph = result.graph
    if any("val" not in n.meta for n in graph.nodes if n.op == "placeholder"):
        raise NMError(
            "the graph's inputs have no meta['val']: trace with "
            "torch.fx.experimental.proxy_tensor.make_fx, which records shapes and dtypes"
        )
    _unify_fake_values(result)
    _check_decomposed(graph)
    is_weight = _named(graph, weights) if weights is not None else _differentiated(graph)

    def kind_of_input(node: fx.Node) -> OperandKind:
        held = node.op == "get_attr" or node in is_weight
        return OperandKind.WEIGHT if held else OperandKind.ACTIVATION

    kinds = operand_kinds(graph, kind_of_input, _starts_gradient)
    before = Listing.of(graph, kinds, lambda node: str(node.target))
    plan = Plan(graph, kinds, chosen)
    run(pipeline.JOINT, plan, "graph")
    graph.lint()
    result.recompile()
    report = GraphReport.of(plan, "", before, lambda node: str(node.target))
    inside = [_listed(called, chosen) for called in reachable(graph) if called is not graph]
    result.meta["nm_report"] = Report.of(chosen, (report, *(r for r in inside if r.sites)))
    return result


def _listed(called: fx.Graph, policy: Policy) -> GraphReport:
    """What a graph multiplies that a higher-order operator of the traced one calls: it stays so."""
    kinds = operand_kinds(called, lambda node: OUTSIDE_UNKNOWN)
    before = Listing.of(called, kinds, lambda node: str(node.target))
    plan = Plan(called, kinds, policy, doubt=OUTSIDE_UNKNOWN, operator="a higher-order operator")
    run(pipeline.JOINT, plan, "graph inside")
    return GraphReport.of(plan, "", before, lambda node: str(node.target))


def _check_decomposed(graph: fx.Graph) -> None:
    for node in graph.nodes:
        values = [n.meta.get("val") for n in node.all_input_nodes]
        matrices = [v for v in values if isinstance(v, torch.Tensor) and v.dim() > 1]
        if len(matrices) > 1 and is_composite(node.target):
            raise NMError(
                f"{node.target} is made of other operators, and a product inside is not visible: "
                "decompose the graph first (exported_program.run_decompositions(), or make_fx "
                "without pre_dispatch)"
            )


def _unify_fake_values(gm: fx.GraphModule) -> None:
    """Give every node a value under one fake mode.

    Plain make_fx records each value under a fake mode of its own; such values cannot be combined.
    """
    calls = [n for n in gm.graph.nodes if n.op in ("placeholder", "call_function")]
    values = [n.meta.get("val") for n in calls]
    modes = {id(v.fake_mode): v.fake_mode for v in values if isinstance(v, FakeTensor)}
    if len(modes) == 1 and all("val" in n.meta for n in calls):
        return
    mode = next(iter(modes.values())) if len(modes) == 1 else FakeTensorMode()
    mode.allow_non_fake_inputs = True  # tensors that the graph holds
    with torch.no_grad():
        _Recorded(gm, mode).propagate_dont_convert_inputs()


class _Recorded(FakeTensorProp):
    """Takes every value as it was recorded, under one mode, and computes those that are missing.

    What was recorded on real tensors has the strides that the kernels really gave, on which the
    views of the graph rely; a fake run may give others (the backward of a layer norm does).
    """

    def run_node(self, n: fx.Node) -> Any:
        if "val" not in n.meta:
            return super().run_node(n)
        n.meta["val"] = tree_map_only(torch.Tensor, self._renew, n.meta["val"])
        return n.meta["val"]

    def _renew(self, value: torch.Tensor) -> torch.Tensor:
        if getattr(value, "fake_mode", None) is self._mode:
            return value
        layout = (value.shape, value.stride())
        return torch.empty_strided(*layout, dtype=value.dtype, device=value.device)


def _starts_gradient(node: fx.Node) -> bool:
    """Autograd begins with ones_like(loss) of a scalar loss."""
    return node.target is aten.ones_like.default and node.meta["val"].dim() == 0


def _named(graph: fx.Graph, weights: str | list[str]) -> set[fx.Node]:
    placeholders = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
    found: set[fx.Node] = set()
    patterns = [weights] if isinstance(weights, str) else weights
    if not isinstance(patterns, (list, tuple, set)) or not all(
        isinstance(p, str) for p in patterns
    ):
        raise ArgumentError(
            f"weights = {shown(weights)}: write the name of a placeholder, or a list of them"
        )
    for pattern in patterns:
        try:
            names = matching(pattern, placeholders)
        except ValueError as error:
            raise ArgumentError(f"weights: {error}") from error
        if not names:
            hint = nearest(pattern, placeholders)
            raise NMError(f"weights: no placeholder {shown(pattern)}: {hint}")
        found.update(placeholders[name] for name in names)
    return found


def _differentiated(graph: fx.Graph) -> set[fx.Node]:
    """Placeholders that are one operand of a product whose other operand meets a gradient.

    ``dW = dY^T X`` exists for the W of ``X W^T`` alone, where X is no parameter: the product of a
    gradient with X says that the operand beside X is a weight.
    """
    neutral = operand_kinds(graph, lambda n: OperandKind.ACTIVATION, _starts_gradient)
    gradient = {n for n, kind in neutral.items() if kind is OperandKind.GRADIENT}
    met = {
        view_base(other)
        for node in graph.nodes
        if is_product(node) and node in gradient
        for one, other in (operands(node), operands(node)[::-1])
        if one in gradient
    }
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is Convolution.operator:
            found.add(view_base(Convolution.of(node).weight))
        elif is_product(node) and node not in gradient:
            left, right = map(view_base, operands(node))
            # The right operand first: when x itself needs a gradient, both have met one.
            if left in met and right.op == "placeholder":
                found.add(right)
            elif right in met and left.op == "placeholder":
                found.add(left)
    return {n for n in found if n.op == "placeholder"}

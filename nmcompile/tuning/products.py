"""The products of a joint graph, what may be pruned in each, and where its gradient is found.

The products are those that the passes find, and what can be pruned in one is what they decide, so
that a policy made from what is measured here decides the same products in the same way.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import fx

from nmcompile.capture.inputs import Capture
from nmcompile.errors import NMWarning
from nmcompile.execution.targets import Target
from nmcompile.gemm import Gemm, Op, OperandKind, Pruning, Role, size_hint
from nmcompile.graph.float8 import cast_of
from nmcompile.graph.subgraphs import mark_planned
from nmcompile.inductor.hooks import JointPass, plan_at
from nmcompile.inductor.options import Settings
from nmcompile.inductor.place import place_of
from nmcompile.masks.formats import NMFormat
from nmcompile.passes.assign import assign
from nmcompile.passes.find import find
from nmcompile.passes.plan import Plan
from nmcompile.policy import Policy, Rule
from nmcompile.tuning.flow import Flow

#: ``node.meta``: the numbers of the products that a node computes.
MARK = "nm_measured"


@dataclass(frozen=True, order=True)
class Choice:
    """One way to prune a product: the operand kind and the format; the method is the kind's own."""

    kind: OperandKind
    format: str

    @property
    def rule(self) -> dict[str, Any]:
        """What a rule that makes this choice says."""
        return {"prune": self.kind, "format": self.format}

    @property
    def dropped(self) -> float:
        """The share of the operand that its masks drop."""
        form = NMFormat.parse(self.format)
        return 1 - form.n / form.m

    def __str__(self) -> str:
        return f"{self.kind} {self.format}"


@dataclass(frozen=True)
class Way:
    """A choice as one product has it: how to prune, and the seconds that a target saves by it."""

    pruning: Pruning
    seconds: float | None


@dataclass(frozen=True)
class Gradient:
    """Where the gradient of a product's result stands in a product of the backward.

    ``transposed``: as the transpose of the result.
    """

    arg: str
    transposed: bool


class Key(NamedTuple):
    """All that the rules of a policy can tell products apart by, but for sizes and dtypes."""

    module: str
    module_class: str
    op: Op
    role: Role


class Slot(NamedTuple):
    """A product of a model, whichever graph and whichever size of a batch it was found in.

    ``place``: among the products of its key in a graph. ``shape``: of a weight gradient.
    """

    key: Key
    place: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Product:
    """A product of the model in one role. ``forward`` is the number of the fprop product.

    ``why``: why nothing can be pruned in it, "" where something can. ``gradient``: of that product
    of the backward at which the forward product is measured.
    """

    number: int
    slot: Slot
    gemm: Gemm
    ways: dict[Choice, Way]
    why: str
    forward: int | None = None
    gradient: Gradient | None = None

    @property
    def flops(self) -> float:
        """Dense FLOPs with the sizes that were traced."""
        return self.gemm.flops_hint or 0.0

    @property
    def rows(self) -> int:
        """Rows of the result, in all of its batch."""
        return size_hint(self.gemm.sizes[0]) * size_hint(self.gemm.sizes[1])


@dataclass
class Found:
    """The products of all graphs, and how gradients flow in each."""

    products: list[Product] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)

    @property
    def sums(self) -> int:
        """How many sums of gradients have been marked."""
        return sum(flow.sums for flow in self.flows)


class MarkProducts(JointPass):
    """In the place of our passes: marks the products of a joint graph, and changes nothing."""

    def __init__(
        self,
        settings: Settings,
        capture: Capture,
        choices: Sequence[Choice],
        found: Found,
    ) -> None:
        super().__init__(settings, capture, build_kernels=False)
        self.choices, self.found = choices, found

    def run(self, graph: fx.Graph) -> None:
        place = place_of(graph, self.settings, self.capture)
        if place is None:
            return
        plan = plan_at(graph, place, self.settings, self.capture)
        find(plan)
        mark_planned(graph)
        plans = {}
        for choice in self.choices:
            settings = replace(self.settings, policy=_policy(choice, self.settings.target))
            plans[choice] = plan_at(graph, place, settings, self.capture)
            plans[choice].gemms = plan.gemms
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NMWarning)  # each product keeps its own reason
                assign(plans[choice])
        first = len(self.found.products)
        places: Counter[Key] = Counter()
        scored: set[int] = set()
        numbers = {g.node: first + n for n, g in enumerate(plan.gemms) if g.role is Role.FPROP}
        for number, gemm in enumerate(plan.gemms):
            key = Key(gemm.path, gemm.module_class, gemm.op, gemm.role)
            sizes = gemm.sizes[1:3] if gemm.role is Role.WGRAD else ()
            slot = Slot(key, places[key], tuple(map(size_hint, sizes)))
            places[key] += 1
            ways, why = _ways(gemm, number, plans, self.settings.target)
            product = Product(first + number, slot, gemm, ways, why)
            forward = numbers.get(gemm.forward) if gemm.forward is not None else None
            if forward is not None:
                product = replace(product, forward=forward)
            if forward is not None and forward not in scored:
                where = gradient_of(plan.gemms[forward - first], gemm)
                product = replace(product, gradient=where)
                scored |= {forward} if where else set()
            self.found.products.append(product)
            gemm.node.meta[MARK] = (*gemm.node.meta.get(MARK, ()), first + number)
        gemms = {first + n: g for n, g in enumerate(plan.gemms)}
        self.found.flows.append(Flow.of(graph, place.kinds, gemms, self.found.sums))


def _policy(choice: Choice, target: Target | None) -> Policy:
    roles = {OperandKind.GRADIENT: ("dgrad", "wgrad")}.get(choice.kind, ("fprop",))
    how = "simulate" if target is None else "auto"
    return Policy(rules=[Rule(role=roles, **choice.rule)], execution=how)


def _ways(
    gemm: Gemm, site: int, plans: dict[Choice, Plan], target: Target | None
) -> tuple[dict[Choice, Way], str]:
    """How the product can be pruned, and why not, where it cannot."""
    ways: dict[Choice, Way] = {}
    reasons: dict[Choice, str] = {}
    for choice, plan in plans.items():
        decision = plan.decisions[site]
        if decision.pruning is None:
            reasons[choice] = decision.execution.reason
            continue
        if cast_of(gemm.node, decision.pruning.operand.arg) is not None:
            reasons[choice] = "operands in 8-bit floating point are not measured"
            continue
        estimate = decision.execution.estimate
        saved = estimate.dense - estimate.sparse if estimate and target is not None else None
        ways[choice] = Way(decision.pruning, saved)
    fits = [c for c in reasons if (c.kind is OperandKind.GRADIENT) is (gemm.role is not Role.FPROP)]
    why = next((reasons[c] for c in fits), "nothing asked for is an operand of it")
    return ways, "" if ways else why


def gradient_of(forward: Gemm, backward: Gemm) -> Gradient | None:
    """Where the gradient of the result of ``forward`` stands in a product of its backward.

    d(lhs) = dY rhs^T has dY on the left and d(rhs) = lhs^T dY on the right, or each transposed; a
    convolution's backward has dY as it is. None where the operands do not tell.
    """
    gradients = [o for o in backward.operands if o.kind is OperandKind.GRADIENT]
    if len(gradients) != 1:
        return None
    (operand,) = gradients
    if backward.op is Op.CONV:
        return Gradient(operand.arg, False)
    beside = next(o for o in backward.operands if o is not operand)
    read = [o for o in forward.operands if o.kind is beside.kind]
    if len(read) != 1:
        return None
    is_left = operand is backward.lhs
    is_of_lhs = read[0] is forward.rhs  # the gradient of the operand that is not read
    return Gradient(operand.arg, is_left is not is_of_lhs)

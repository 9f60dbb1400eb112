"""The rows of a report: a product in one role, and the products that were decided together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import fx

from nmcompile.capture.eager import Count, Layer
from nmcompile.compressed.layouts import Layout
from nmcompile.execution.units import Unit
from nmcompile.gemm import Op, Operand, OperandKind, Role, Unknown
from nmcompile.graph.stored_weight import StoredWeight
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.passes.kept_masks import all_kept
from nmcompile.passes.plan import Decision, Plan
from nmcompile.reason import Code, Reason, sentence
from nmcompile.weight_masks.stored_mask import StoredMask


class Frozen(BaseModel):
    """What cannot be changed, and has no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightRow(Frozen):
    """The parameter in which the pruned weight of a forward product lies.

    Dimensions are the parameter's own: ``dims`` those that the product reduces over, of which
    ``groups`` channel groups share the first; ``tile_dims`` and ``tile_groups`` those of a mask
    that is N:M along both. ``obstacle``: why the mask cannot be written into the parameter.
    """

    names: tuple[str, ...] = Field(description="its paths: one for each module of a region")
    dims: tuple[int, ...]
    groups: int
    tile_dims: tuple[int, int] | None
    tile_groups: int
    obstacle: str

    @classmethod
    def of(cls, stored: StoredWeight, operand: Operand, names: tuple[str, ...]) -> WeightRow:
        order, tile = stored.order, operand.tile_dims
        return cls(
            names=names,
            dims=tuple(order[d] for d in operand.dims),
            groups=operand.groups,
            tile_dims=None if tile is None else (order[tile[0]], order[tile[1]]),
            tile_groups=operand.tile_groups,
            obstacle=stored.obstacle,
        )

    def mask(self, form: NMFormat, method: Method) -> StoredMask:
        """How a mask of the parameter is taken, as the product takes one of its weight."""
        tile = self.tile_dims and (self.tile_dims, self.tile_groups)
        return StoredMask.of(form, method, (self.dims, self.groups), tile)


class KeptRow(Frozen):
    """A mask of a weight that is kept between steps, and read by a graph as an input.

    ``dims`` are the weight's own dimensions that the blocks run along (or the tiles span), of which
    ``groups`` channel groups share the first.
    """

    input: int = Field(description="the weight's number among the inputs of the captured graph")
    names: tuple[str, ...] = Field(description="its paths: one for each module of a region")
    format: str
    method: str
    dims: tuple[int, ...]
    groups: int
    refresh: int = Field(description="steps of the optimizer after which it is taken anew")
    decay: float = Field(description="what the masked part of the weight adds to its gradient")

    @classmethod
    def all_of(cls, plan: Plan, name_of_input: Callable[[fx.Node], str]) -> tuple[KeptRow, ...]:
        """The rows of a plan whose products are decided."""
        each, shown = plan.region.each, plan.region.shown
        return tuple(
            cls(
                input=kept.number,
                names=each(shown(name_of_input(kept.weight))),
                format=str(kept.stored.format),
                method=str(kept.stored.method),
                dims=kept.stored.dims,
                groups=kept.stored.groups,
                refresh=kept.life.refresh,
                decay=kept.life.decay,
            )
            for kept in all_kept(plan)
        )

    @property
    def stored(self) -> StoredMask:
        """How it is taken."""
        form, method = NMFormat.parse(self.format), Method(self.method)
        return StoredMask(form, method, self.dims, self.groups)


class Site(Frozen):
    """One product in one role. ``sizes`` are (batch, M, N, K) as text, symbolic where they are."""

    site: int
    module: str
    module_class: str
    op: Op
    target: str
    role: Role
    sizes: tuple[str, str, str, str]
    flops: float | None = Field(
        description="dense FLOPs, 2*batch*M*N*K, with the sizes that were traced; None where one "
        "is data, known when the graph runs alone"
    )
    dtype: str
    device: str
    operands: tuple[OperandKind | Unknown, OperandKind | Unknown]
    dims: tuple[int, ...] | None = Field(description="dimensions the blocks run along")
    pruned: OperandKind | None
    format: str | None
    method: str | None
    backward: str | None
    execution: Literal["sparse", "simulate", "dense"]
    layout: Layout | None = Field(description="of the compressed operand, where sparse")
    dense_us: float | None = Field(description="predicted or measured time of the dense product")
    sparse_us: float | None = Field(
        description="the same of the sparse product and all that runs for it, with its share of "
        "the kernels of its unit"
    )
    unit: int | None = Field(
        default=None, description="the products that were decided together, of GraphReport.units"
    )
    rule: str | None = Field(description="file, line and number of the rule that decided")
    reasons: tuple[Reason, ...] = Field(description="why it is so: codes to filter by, and texts")
    weight: WeightRow | None = Field(
        default=None, description="where the weight lies that a forward product prunes"
    )
    guess: Reason | None = Field(description="why its role could not be derived; it is dense")

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return sentence(self.reasons)

    @property
    def known_flops(self) -> float:
        """Its FLOPs where they are known, else none."""
        return self.flops or 0.0

    @property
    def planned_us(self) -> float | None:
        """Its time as it was decided: of the dense product where it is simulated or dense."""
        return self.sparse_us if self.execution == "sparse" else self.dense_us

    @property
    def dropped(self) -> float:
        """The share of the pruned operand's elements that its mask drops; 0 where none is."""
        if self.format is None:
            return 0.0
        form = NMFormat.parse(self.format)
        return 1 - form.n / form.m

    def has(self, code: Code) -> bool:
        """Whether one of the reasons has this code."""
        return any(reason.code is code for reason in self.reasons)

    @classmethod
    def of(
        cls,
        d: Decision,
        reasons: tuple[Reason, ...],
        dense: float | None = None,
        weight: WeightRow | None = None,
    ) -> Site:
        g, p, how = d.gemm, d.pruning, d.execution
        dense = how.estimate.dense if how.estimate else dense
        # Of the product that was found: a sparse convolution has become a matrix product by now.
        dims = next((o.dims for o in g.operands if p and o.kind is p.kind), None)
        return cls(
            site=d.site,
            module=g.path,
            module_class=g.module_class,
            op=g.op,
            target=g.target,
            role=g.role,
            sizes=tuple(str(s) for s in g.sizes),  # type: ignore[arg-type]
            flops=g.flops_hint,
            dtype=g.dtype,
            device=g.device,
            operands=(g.lhs.kind, g.rhs.kind),
            dims=dims,
            pruned=p.kind if p else None,
            format=str(p.format) if p else None,
            method=str(p.method) if p else None,
            backward=d.rule.backward if p and d.rule and g.role is Role.FPROP else None,
            execution=how.how,
            layout=how.layout,
            dense_us=None if dense is None else dense * 1e6,
            sparse_us=how.estimate.sparse * 1e6 if how.estimate else None,
            unit=how.unit,
            rule=d.rule.label if d.rule else None,
            reasons=reasons,
            weight=weight,
            guess=g.guess,
        )


class UnitRow(Frozen):
    """Products that share a compressed operand, and the terms by which they were decided.

    ``terms_us``: ``dense``, and of what runs in its place ``product``, ``bias``, ``padding`` and
    ``host`` of all products, ``compress``, ``prune`` and ``exact`` of the unit; those
    that are zero are left out (``nmcompile.execution.cost``). They are of the products that run
    sparse; where none does, of those that came nearest to a gain. ``sparse_us`` is what was weighed
    against ``dense_us``: all of them but ``exact``.
    """

    unit: int
    sites: tuple[int, ...]
    sparse: tuple[int, ...] = Field(description="those of the sites that run sparse")
    how: str = Field(description="predicted or measured")
    dense_us: float
    sparse_us: float
    terms_us: dict[str, float]

    @classmethod
    def of(cls, unit: Unit) -> UnitRow:
        total = unit.estimate.weighed
        return cls(
            unit=unit.number,
            sites=unit.sites,
            sparse=unit.sparse,
            how=total.how,
            dense_us=total.dense * 1e6,
            sparse_us=total.sparse * 1e6,
            terms_us={name: s * 1e6 for name, s in unit.estimate.terms().items()},
        )

    def __str__(self) -> str:
        beside = ("dense", "exact")
        terms = {name: us for name, us in self.terms_us.items() if name not in beside}
        shown = " + ".join(f"{name} {us:.0f}" for name, us in terms.items())
        ran = f"{len(self.sparse)} of {len(self.sites)} sparse"
        ratio = self.dense_us / self.sparse_us
        sums = f"{shown} = {self.sparse_us:.0f} us ({ratio:.2f}x)"
        if "exact" in self.terms_us:
            sums += f", exact backward {self.terms_us['exact']:.0f} us more"
        return f"{ran}, {self.how}: dense {self.dense_us:.0f} us, {sums}"


class EagerRow(Frozen):
    """What multiplies in no graph: an operator that runs eagerly, and dense, in one module."""

    module: str
    module_class: str
    target: str
    calls: int = Field(description="in one forward")
    flops: float | None = Field(
        description="dense FLOPs of a step, with the backward of these calls; None where unknown"
    )
    reason: Reason | None = Field(
        description="why no policy could prune it in a graph either; None for a product"
    )

    @classmethod
    def of(cls, layer: Layer, count: Count) -> EagerRow:
        return cls(
            module=layer.path,
            module_class=layer.module_class,
            target=layer.target,
            calls=count.calls,
            flops=count.flops,
            reason=layer.reason,
        )

"""What was done to each product, and why: a table, JSON, and the graphs before and after."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console, ConsoleOptions, RenderResult

from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.loader import recorded_kernels
from nmcompile.codegen.masks import MaskSpec
from nmcompile.execution.targets import Target
from nmcompile.gemm import OperandKind
from nmcompile.graph.find_skipped import Skipped
from nmcompile.passes.plan import Plan
from nmcompile.policy import Policy
from nmcompile.report import text
from nmcompile.report.rows import Frozen, Site, UnitRow
from nmcompile.report.saved import SavedTensor


class GraphReport(Frozen):
    """One compiled graph. ``before`` and ``after`` are its joint graph as readable code."""

    digest: str
    region: tuple[str, ...] = Field(
        default=(), description="modules that share this graph; sites name all of them at once"
    )
    sharing: tuple[int, ...] = Field(
        default=(), description="ranks that share the computation, and draw the same masks"
    )
    training: bool
    sites: tuple[Site, ...]
    units: tuple[UnitRow, ...] = Field(default=(), description="what was decided together, and why")
    skipped: tuple[Skipped, ...]
    before: str
    after: str
    saved: tuple[SavedTensor, ...] | None = Field(
        default=None, description="what the forward keeps for the backward; of explain() alone"
    )
    kernel_specs: tuple[KernelSpec | MaskSpec, ...] | None = Field(
        default=None, description="what would be generated; of explain(target=...) alone"
    )

    @property
    def decisions_digest(self) -> str:
        """What was decided for each product, without the times that were measured."""
        left_out = {"dense_us", "sparse_us", "rule", "reasons"}
        sites = [s.model_dump(exclude=left_out) for s in self.sites]
        sites += [{"reasons": [r.code for r in s.reasons]} for s in self.sites]
        return hashlib.sha256(repr(sites).encode()).hexdigest()

    @classmethod
    def of(cls, plan: Plan, digest: str, before: str, after: str) -> GraphReport:
        return cls(
            digest=digest,
            region=plan.region.paths,
            sharing=tuple(plan.sharing),
            training=any(k is OperandKind.GRADIENT for k in plan.kinds.values()),
            sites=tuple(
                Site.of(d, plan.reasons(d), plan.dense_seconds.get(d.site)) for d in plan.decisions
            ),
            units=tuple(map(UnitRow.of, plan.units)),
            skipped=tuple(plan.skipped),
            before=before,
            after=after,
        )


class Totals(Frozen):
    """Dense FLOPs of all products, those of pruned products, and the share that pruning skips."""

    sites: int
    pruned_sites: int
    flops: float
    pruned_flops: float
    pruned_share: float
    skipped_share: float = Field(
        description="FLOPs of what the masks drop, over all: sparse products leave them out, "
        "simulated ones multiply by zero"
    )
    dense_us: float | None = Field(
        description="predicted or measured time of all products in one step, dense; None where "
        "nothing is known"
    )
    planned_us: float | None = Field(
        description="the same as they were decided, with what runs for the sparse ones"
    )
    untimed_sites: int = Field(description="products that both leave out, without figures")
    saved_bytes: int | None = Field(
        description="kept from forward to backward, parameters and inputs left out"
    )


class Report(Frozen):
    """What a policy did to every product of a model. ``print(report)`` shows a table."""

    schema_version: Literal[2] = 2
    policy: str
    target: Target | None = Field(default=None, description="the GPU that was planned for, if one")
    graphs: tuple[GraphReport, ...]
    unused_rules: tuple[str, ...]
    uncompiled: tuple[str, ...] = Field(
        default=(), description="linear and convolution modules that no compiled graph holds"
    )

    @classmethod
    def of(
        cls,
        policy: Policy,
        graphs: tuple[GraphReport, ...],
        uncompiled: Iterable[str] = (),
        target: Target | None = None,
    ) -> Report:
        used = {s.rule for g in graphs for s in g.sites}
        own = [r.label for r in policy.all_rules if r.recipe is None]
        unused = tuple(label for label in own if label not in used)
        return cls(
            policy=policy.to_toml(),
            target=target,
            graphs=graphs,
            unused_rules=unused,
            uncompiled=tuple(uncompiled),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The rows of all graphs."""
        return tuple(s for g in self.graphs for s in g.sites)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What multiplies matrices but cannot be rewritten, with reasons."""
        return tuple(s for g in self.graphs for s in g.skipped)

    @property
    def saved(self) -> tuple[SavedTensor, ...]:
        """What all forward graphs keep for the backward, inputs and parameters left out."""
        return tuple(s for g in self.graphs for s in g.saved or () if not s.is_input)

    @property
    def kernels(self) -> tuple[Path, ...]:
        """The files of the generated kernels, as far as the graphs have been compiled.

        The backward of a graph is compiled when it first runs.
        """
        found = [path for g in self.graphs for path in recorded_kernels(g.digest)]
        return tuple(dict.fromkeys(found))

    @property
    def totals(self) -> Totals:
        """Sums over all graphs."""
        sites, flops = self.sites, sum(s.flops for s in self.sites)
        pruned = [s for s in sites if s.pruned]
        left_out = sum(s.flops * s.dropped for s in pruned)
        of_all = (lambda x: x / flops) if flops else (lambda x: 0.0)
        timed = [s for s in sites if s.dense_us is not None]
        dense = sum(s.dense_us or 0.0 for s in timed)
        planned = sum(s.planned_us or 0.0 for s in timed)
        planned += sum(r.terms_us.get("exact", 0) for g in self.graphs for r in g.units if r.sparse)
        return Totals(
            sites=len(sites),
            pruned_sites=len(pruned),
            flops=flops,
            pruned_flops=sum(s.flops for s in pruned),
            pruned_share=of_all(sum(s.flops for s in pruned)),
            skipped_share=of_all(left_out),
            dense_us=dense if timed else None,
            planned_us=planned if timed else None,
            untimed_sites=len(sites) - len(timed),
            saved_bytes=_bytes(self.saved) if self._knows_saved else None,
        )

    @property
    def _knows_saved(self) -> bool:
        return any(g.saved is not None for g in self.graphs)

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON (``schema_version`` 2), with its totals; also written to ``path``."""
        data: dict[str, Any] = self.model_dump(mode="json")
        data["totals"] = self.totals.model_dump(mode="json")
        document = json.dumps(data, indent=2)
        if path is not None:
            Path(path).write_text(document)
        return document

    def __str__(self) -> str:
        width = text.terminal_width()
        out = io.StringIO()
        console = Console(file=out, width=width, highlight=False)
        for part in text.parts(self, width):
            console.print(part)
        return out.getvalue()

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from text.parts(self, options.max_width)


def _bytes(saved: Iterable[SavedTensor]) -> int:
    return sum(s.bytes for s in saved)

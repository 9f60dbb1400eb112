"""What was done to each product, and why: a table, JSON, and the graphs before and after."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from nmcompile.codegen.loader import recorded_kernels
from nmcompile.compressed.layouts import Layout
from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.graph.find_skipped import Skipped
from nmcompile.passes.plan import Decision, Plan
from nmcompile.policy import Policy
from nmcompile.reason import Code, Reason, sentence
from nmcompile.report.saved import SavedTensor


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(_Frozen):
    """One product in one role. ``sizes`` are (batch, M, N, K) as text, symbolic where they are."""

    site: int
    module: str
    module_class: str
    op: Op
    target: str
    role: Role
    sizes: tuple[str, str, str, str]
    flops: float = Field(description="dense FLOPs, 2*batch*M*N*K, with the sizes that were traced")
    dtype: str
    device: str
    operands: tuple[OperandKind, OperandKind]
    dims: tuple[int, ...] | None = Field(description="dimensions the blocks run along")
    pruned: OperandKind | None
    format: str | None
    method: str | None
    backward: str | None
    execution: Literal["sparse", "simulate", "dense"]
    layout: Layout | None = Field(description="of the compressed operand, where sparse")
    dense_us: float | None = Field(description="predicted or measured time of the dense product")
    sparse_us: float | None = Field(description="the same of compress plus sparse product")
    rule: str | None = Field(description="file, line and number of the rule that decided")
    reasons: tuple[Reason, ...] = Field(description="why it is so: codes to filter by, and texts")
    guess: Reason | None = Field(description="why its role could not be derived")

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return sentence(self.reasons)

    def has(self, code: Code) -> bool:
        """Whether one of the reasons has this code."""
        return any(reason.code is code for reason in self.reasons)

    @classmethod
    def of(cls, d: Decision, reasons: tuple[Reason, ...]) -> Site:
        g, p, how = d.gemm, d.pruning, d.execution
        # Of the product that was found: a sparse convolution has become a matrix product by now.
        dims = next((o.dims for o in g.operands if p and o.kind is p.operand.kind), None)
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
            pruned=p.operand.kind if p else None,
            format=str(p.format) if p else None,
            method=str(p.method) if p else None,
            backward=d.rule.backward if p and d.rule and g.role is Role.FPROP else None,
            execution=how.how,
            layout=how.layout,
            dense_us=how.estimate.dense * 1e6 if how.estimate else None,
            sparse_us=how.estimate.sparse * 1e6 if how.estimate else None,
            rule=d.rule.label if d.rule else None,
            reasons=reasons,
            guess=g.guess,
        )


class GraphReport(_Frozen):
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
    skipped: tuple[Skipped, ...]
    before: str
    after: str
    saved: tuple[SavedTensor, ...] | None = Field(
        default=None, description="what the forward keeps for the backward; of explain() alone"
    )

    @property
    def decisions_digest(self) -> str:
        """What was decided for each product, without the times that were measured."""
        sites = [s.model_dump(exclude={"dense_us", "sparse_us", "rule"}) for s in self.sites]
        return hashlib.sha256(repr(sites).encode()).hexdigest()

    @classmethod
    def of(cls, plan: Plan, digest: str, before: str, after: str) -> GraphReport:
        return cls(
            digest=digest,
            region=plan.region.paths,
            sharing=tuple(plan.sharing),
            training=any(k is OperandKind.GRADIENT for k in plan.kinds.values()),
            sites=tuple(Site.of(d, plan.reasons(d)) for d in plan.decisions),
            skipped=tuple(plan.skipped),
            before=before,
            after=after,
        )


class Totals(_Frozen):
    """Dense FLOPs of all products, those of pruned products, and the share that pruning skips."""

    sites: int
    pruned_sites: int
    flops: float
    pruned_flops: float
    pruned_share: float
    skipped_share: float = Field(description="FLOPs that sparse products leave out, over all")


class Report(_Frozen):
    """What a policy did to every product of a model. ``print(report)`` shows a table."""

    schema_version: Literal[2] = 2
    policy: str
    graphs: tuple[GraphReport, ...]
    unused_rules: tuple[str, ...]
    uncompiled: tuple[str, ...] = Field(
        default=(), description="linear and convolution modules that no compiled graph holds"
    )

    @classmethod
    def of(
        cls, policy: Policy, graphs: tuple[GraphReport, ...], uncompiled: Iterable[str] = ()
    ) -> Report:
        used = {s.rule for g in graphs for s in g.sites}
        own = [r.label for r in policy.all_rules if r.recipe is None]
        unused = tuple(label for label in own if label not in used)
        return cls(
            policy=policy.to_toml(),
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
        left_out = sum(s.flops * (1 - _density(s.format)) for s in pruned)
        of_all = (lambda x: x / flops) if flops else (lambda x: 0.0)
        return Totals(
            sites=len(sites),
            pruned_sites=len(pruned),
            flops=flops,
            pruned_flops=sum(s.flops for s in pruned),
            pruned_share=of_all(sum(s.flops for s in pruned)),
            skipped_share=of_all(left_out),
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON (``schema_version`` 2), with its totals; also written to ``path``."""
        import json

        data: dict[str, Any] = self.model_dump(mode="json")
        data["totals"] = self.totals.model_dump(mode="json")
        text = json.dumps(data, indent=2)
        if path is not None:
            Path(path).write_text(text)
        return text

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=_WIDTH, highlight=False)
        for part in self._parts():
            console.print(part)
        return out.getvalue()

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts()

    def _parts(self) -> Iterator[Table | Text]:
        for number, graph in enumerate(self.graphs):
            kind = "training" if graph.training else "inference"
            yield _table(graph, f"graph {number} ({kind})")
        yield from map(Text, self._lines())
        for kernel in self.kernels:
            yield Text(f"kernel {kernel}", no_wrap=True, overflow="ignore")

    def _lines(self) -> Iterator[str]:
        t = self.totals
        yield (
            f"{t.pruned_sites} of {t.sites} products pruned: {t.pruned_share:.1%} of "
            f"{t.flops:.3g} FLOPs, of which sparse products leave out {t.skipped_share:.1%} of all."
        )
        if self.saved:
            packed = sum(s.bytes for s in self.saved if s.compressed)
            yield (
                f"saved for the backward: {sum(s.bytes for s in self.saved):,} bytes in "
                f"{len(self.saved)} tensors, of them compressed {packed:,}"
            )
        for (target, reason), count in Counter((s.target, s.reason) for s in self.skipped).items():
            yield f"skipped {count} x {target}: {reason}"
        yield from sorted({r.text for s in self.sites for r in s.reasons if r.code in _GENERAL})
        yield from (f"rule {rule} decided nothing" for rule in self.unused_rules)
        if self.uncompiled:
            yield f"in no compiled graph (not called, or run eagerly): {', '.join(self.uncompiled)}"
        guesses = sum(s.guess is not None for s in self.sites)
        if guesses:
            yield f"{guesses} products were classified by a guess; see their reason."


_WIDTH = 150


#: What holds for every site alike, and is printed once.
_GENERAL = (Code.AUTO_SIMULATES, Code.DECODED)


def _density(text: str | None) -> float:
    n, m = (text or "1:1").split(":")
    return int(n) / int(m)


def _table(graph: GraphReport, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("module", "op", "role", "batch x M x N x K", "dtype", "pruned", "execution"):
        table.add_column(column, overflow="fold", no_wrap=column != "module")
    table.add_column("rule / reason", overflow="fold")
    for s in graph.sites:
        own = sentence(r for r in s.reasons if r.code not in _GENERAL)
        why = "; ".join(filter(None, (s.rule, own, str(s.guess or ""))))
        table.add_row(
            f"{s.module or '(root)'}",
            str(s.op),
            str(s.role),
            " x ".join(s.sizes[1:] if s.sizes[0] == "1" else s.sizes),
            s.dtype,
            f"{s.pruned} {s.format} {s.method}" if s.pruned else "-",
            s.execution,
            why,
        )
    return table

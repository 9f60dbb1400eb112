"""What was done to each product, and why: a table, JSON, and the graphs before and after."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from rich.console import Console, ConsoleOptions, RenderResult
from torch import fx

from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.loader import recorded_kernels, sources
from nmcompile.codegen.mask_spec import MaskSpec
from nmcompile.execution.targets import Target
from nmcompile.gemm import OperandKind
from nmcompile.graph.find_skipped import Skipped
from nmcompile.passes.plan import Plan
from nmcompile.policy import Policy
from nmcompile.reason import Reason
from nmcompile.report import files, notebook, text
from nmcompile.report.nodes import Listing, Node
from nmcompile.report.rows import EagerRow, Frozen, KeptRow, Site, UnitRow, WeightRow
from nmcompile.report.saved import SavedTensor
from nmcompile.report.totals import Totals, totals


class GraphReport(Frozen):
    """One compiled graph. ``before`` and ``after`` are its joint graph as readable code.

    ``nodes_before`` and ``nodes_after`` are the same as data (``report.nodes.Node``).
    """

    digest: str
    region: tuple[str, ...] = Field(
        default=(), description="modules that share this graph; sites name all of them at once"
    )
    operator: str = Field(
        default="", description="the higher-order operator that calls this graph, if one does"
    )
    times: int | None = Field(
        default=1, description="how often that one runs it in a step; None where nobody knows"
    )
    modules: int | None = Field(
        default=None, description="how many modules share it, where the region has all callers"
    )
    sharing: tuple[int, ...] = Field(
        default=(), description="ranks that share the computation, and draw the same masks"
    )
    training: bool
    sites: tuple[Site, ...]
    kept: tuple[KeptRow, ...] = Field(
        default=(), description="masks of weights that are kept between steps"
    )
    units: tuple[UnitRow, ...] = Field(default=(), description="what was decided together, and why")
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = Field(default=(), description="what the user was warned of")
    before: str
    after: str
    nodes_before: tuple[Node, ...] = ()
    nodes_after: tuple[Node, ...] = ()
    saved: tuple[SavedTensor, ...] | None = Field(
        default=None, description="what the forward keeps for the backward; of explain() alone"
    )
    calls: int | None = Field(
        default=None, description="how often it ran in one forward; of explain() alone"
    )
    kernel_specs: tuple[KernelSpec | MaskSpec, ...] | None = Field(
        default=None, description="what would be generated; of explain(target=...) alone"
    )

    @property
    def runs(self) -> int:
        """How often it runs in one step: as counted, or once for each module that shares it.

        A graph inside of another one so often each time, once where nobody knows.
        """
        modules = max(1, len(self.region)) if self.modules is None else self.modules
        return (modules if self.calls is None else self.calls) * (self.times or 1)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return notebook.html((self,), ())

    def kernel_sources(self) -> dict[str, str]:
        """The source of each kernel that would be generated or that was, by its file's name."""
        were = {path.name: path.read_text() for path in recorded_kernels(self.digest)}
        return sources(self.kernel_specs or ()) | were

    @property
    def decisions_digest(self) -> str:
        """What was decided for each product, without the times that were measured."""
        left_out = {"dense_us", "sparse_us", "rule", "reasons"}
        sites = [s.model_dump(exclude=left_out) for s in self.sites]
        sites += [{"reasons": [r.code for r in s.reasons]} for s in self.sites]
        return hashlib.sha256(repr(sites).encode()).hexdigest()

    @classmethod
    def of(
        cls,
        plan: Plan,
        digest: str,
        before: Listing,
        name_of_input: Callable[[fx.Node], str],
    ) -> GraphReport:
        """The report of a plan whose passes have run; ``before`` is its graph as it was."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        placed: defaultdict[str, list[int]] = defaultdict(list)
        for d in plan.decisions:
            found[d.gemm.node.name].append(d.site)
            placed[plan.products[d.site].node.name].append(d.site)
        each, shown = plan.region.each, plan.region.shown
        weights = {
            d.site: WeightRow.of(
                plan.weights[d.site],
                d.pruning.operand,
                each(shown(name_of_input(plan.weights[d.site].node))),
            )
            for d in plan.decisions
            if d.pruning and d.site in plan.weights
        }
        after = Listing.of(plan.graph, plan.kinds, name_of_input, plan.region.shown)
        return cls(
            digest=digest,
            region=plan.region.paths,
            operator=plan.operator,
            times=plan.times,
            modules=plan.modules,
            sharing=tuple(plan.sharing),
            training=any(k is OperandKind.GRADIENT for k in plan.kinds.values()),
            sites=tuple(
                Site.of(d, plan.reasons(d), plan.dense_seconds.get(d.site), weights.get(d.site))
                for d in plan.decisions
                if not d.gemm.again
            ),
            kept=KeptRow.all_of(plan, name_of_input),
            units=tuple(map(UnitRow.of, plan.units)),
            skipped=tuple(plan.skipped),
            warnings=tuple(plan.warnings),
            before=before.code,
            after=after.code,
            nodes_before=before.marked(found, None),
            nodes_after=after.marked(placed, before),
        )


class Report(Frozen):
    """What a policy did to every product of a model. ``print(report)`` shows a table."""

    schema_version: Literal[3] = 3
    policy: str
    target: Target | None = Field(default=None, description="the GPU that was planned for, if one")
    cuda_graphs: bool = Field(
        default=False, description="whether the plan for the target is for steps in CUDA graphs"
    )
    graphs: tuple[GraphReport, ...]
    unused_rules: tuple[str, ...]
    uncompiled: tuple[str, ...] = Field(
        default=(), description="modules with a weight that is in no compiled graph"
    )
    notes: tuple[Reason, ...] = Field(
        default=(), description="what happened to all of the model, such as that it ran eagerly"
    )
    eager: tuple[EagerRow, ...] = Field(
        default=(), description="what multiplies in no graph; of explain() alone"
    )

    @classmethod
    def of(
        cls,
        policy: Policy,
        graphs: tuple[GraphReport, ...],
        uncompiled: Iterable[str] = (),
        target: Target | None = None,
        notes: Iterable[Reason] = (),
        eager: Iterable[EagerRow] = (),
        cuda_graphs: bool = False,
    ) -> Report:
        used = {s.rule for g in graphs for s in g.sites}
        own = [r.label for r in policy.all_rules if r.recipe is None]
        unused = tuple(label for label in own if label not in used)
        return cls(
            policy=policy.to_toml(),
            target=target,
            cuda_graphs=cuda_graphs,
            graphs=graphs,
            unused_rules=unused,
            uncompiled=tuple(uncompiled),
            notes=tuple(notes),
            eager=tuple(eager),
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

    def kernel_sources(self) -> dict[str, str]:
        """The source of each kernel that would be generated or that was, by its file's name."""
        return {name: s for g in self.graphs for name, s in g.kernel_sources().items()}

    @property
    def totals(self) -> Totals:
        """Sums over all graphs."""
        return totals(self.graphs, self.eager)

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON (``schema_version`` 3), with its totals; also written to ``path``.

        Raises:
            NMError: the file cannot be written.
        """
        data: dict[str, Any] = self.model_dump(mode="json")
        data["totals"] = self.totals.model_dump(mode="json")
        document = json.dumps(data, indent=2)
        if path is not None:
            files.write(path, document)
        return document

    @classmethod
    def from_json(cls, path: str | Path) -> Report:
        """Read what ``to_json`` (or ``nmcompile explain --json``) wrote into a file.

        Raises:
            NMError: it cannot be read, is no report, or one of another ``schema_version``.
        """
        data = files.read(path, cls.model_fields["schema_version"].default)
        data.pop("totals", None)  # they follow from the rest
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise files.broken(path, error) from error

    def to_html(self, path: str | Path, title: str = "nmcompile report") -> Path:
        """Write the report as one HTML file, which needs no network.

        Raises:
            NMError: fast-sugiyama is not installed, or the file cannot be written.
        """
        from nmcompile.report.page.page import page

        return files.write(path, page(self, title))

    def to_model_explorer(self, path: str | Path, title: str = "nmcompile report") -> Path:
        """Write the graphs, after and before, for Google's Model Explorer.

        ``pip install ai-edge-model-explorer && model-explorer FILE`` shows them.

        Modules are its layers; what was inserted and what was pruned is marked, and each node has
        its shape, dtype, line of the model's source, and of a product the role, rule and reason.

        Raises:
            NMError: there is no graph, or the file cannot be written.
        """
        from nmcompile.report.model_explorer import collection

        return files.write(path, json.dumps(collection(self, title)))

    def __str__(self) -> str:
        return text.plain(self, text.terminal_width())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return notebook.html(self.graphs, text.lines(self))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from text.parts(self, options.max_width)

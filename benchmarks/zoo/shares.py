"""What becomes of everything that a step multiplies: shares of its FLOPs, each product in one.

The FLOPs of the step are those that an eager one ran (``executed``), and so is what it multiplied
in no graph; what was pruned, and what was not, is the report's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.executed import Executed
from nmcompile import Report
from nmcompile.capture.regions import Region
from nmcompile.reason import Code
from nmcompile.report.rows import Site

M = 4  # of 2:4, the format of ``full``


@dataclass(frozen=True)
class Listed:
    """A row of the report under one module, and how often a step multiplies it."""

    path: str
    site: Site
    count: int

    @property
    def flops(self) -> float:
        """Of one step."""
        return self.count * self.site.known_flops

    @property
    def backward(self) -> bool:
        """Whether it is a product of a backward."""
        return self.site.role != "fprop"


def listed(report: Report, entry: Entry | None = None) -> list[Listed]:
    """The rows of a report one by one: of a graph that modules share, one for each of them.

    What the batch of an entry does not run is left out, and a loop counts as often as it runs.
    """
    rows = []
    for graph in report.graphs:
        if not graph.sites:  # nothing to list, however often it runs
            continue
        times = entry.iterations if entry and graph.times is None else 1
        region = Region(graph.region)
        count, rest = divmod(graph.runs * times, max(1, len(graph.region)))
        assert not rest, f"{graph.region} run {graph.runs} times together"
        for site in graph.sites:
            for path in region.each(site.module):
                if entry is None or path not in entry.untaken:
                    rows.append(Listed(path, site, count))
    return rows


@dataclass(frozen=True)
class Shares:
    """FLOPs of a step, in parts that sum up to ``everything``; ``attention`` is beside it.

    ``pruned``: by the policy. ``short``: what has no N:M block, since it reduces over fewer than M
    elements. ``matmul``: products without a weight, which the policy leaves alone. ``inside``: of
    operators that hide their products. ``eager``: in no graph. ``layers``: linear, convolution and
    grouped products that are none of these, dense though they could be pruned.
    """

    pruned: float
    short: float
    matmul: float
    inside: float
    eager: float
    layers: float
    attention: float

    @property
    def everything(self) -> float:
        """What the step multiplies, but for fused attention."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.attention

    def of(self, part: str) -> float:
        """A part's share of everything; of fused attention, the share of the whole step."""
        whole = self.everything + self.attention * (part == "attention")
        return float(getattr(self, part)) / whole

    @property
    def of_layers(self) -> float:
        """The pruned share of layers, what runs eagerly taken for such, whose sizes have blocks."""
        whole = self.pruned + self.layers + self.eager
        return self.pruned / whole if whole else 0.0


def shares(ran: Executed, rows: Iterable[Listed], entry: Entry) -> Shares:
    """The parts of a step: ``ran`` in eager mode, and listed in ``rows`` when compiled."""
    parts = dict.fromkeys(("pruned", "short", "matmul", "layers"), 0.0)
    for row in rows:
        parts[_part(row, ran)] += row.flops
    products = [(p, count * p.flops) for p, count in (ran.products - ran.unused).items()]
    eager = sum(flops for p, flops in products if p.path in entry.eager_only)
    eager += sum(o.flops for o in ran.opaque if o.path in entry.eager_only)
    inside = [o for o in ran.opaque if o.path not in entry.eager_only]
    attention = sum(o.flops for o in inside if o.is_attention)
    # Multiplications that reduce over one element, which Inductor may write as such.
    written_out = sum(flops for _, flops in products) - eager - sum(parts.values())
    parts["short"] += max(0.0, written_out)
    return Shares(
        **parts,
        inside=sum(o.flops for o in inside) - attention,
        eager=eager,
        attention=attention,
    )


def _part(row: Listed, ran: Executed) -> str:
    if row.site.pruned is not None:
        return "pruned"
    if extent(row, ran) < M:
        return "short"
    return "layers" if is_layers(row, ran) else "matmul"


def is_layers(row: Listed, ran: Executed) -> bool:
    """Whether it is a linear, convolution or grouped product: by its name, or by its module."""
    return row.site.op != "matmul" or row.path in ran.layers


def extent(row: Listed, ran: Executed) -> int:
    """How many elements follow each other where a block may lie; of a layer, as it ran."""
    if row.site.op == "conv" or row.path in ran.layers:
        return ran.extents[row.path][str(row.site.role)]
    return int(row.site.sizes[-1])


def without_weight(rows: Iterable[Listed], ran: Executed) -> list[str]:
    """Modules with more FLOPs listed as products without a weight than ran without a parameter."""
    listed_so, ran_so = Counter[str](), Counter[str]()
    for row in rows:
        if row.site.role == "fprop" and not is_layers(row, ran):
            listed_so[row.path] += row.flops
    for product, count in (ran.products - ran.weighted).items():
        if not product.backward:
            ran_so[product.path] += count * product.flops
    return [
        f"{path!r}: {flops:g} FLOPs are listed without a weight, {ran_so[path]:g} ran without one"
        for path, flops in listed_so.items()
        if flops > ran_so[path]
    ]


def not_pruned(rows: Iterable[Listed], ran: Executed) -> Iterator[str]:
    """Layers that are dense though their sizes have blocks, and what is pruned by a guess."""
    for row in rows:
        site = row.site
        what = f"{row.path or 'the model itself'} {site.role} {'x'.join(site.sizes)}"
        if site.guess is not None and site.pruned is not None:
            yield f"full: {what}: pruned by a guess: {site.guess}"
        if site.pruned is not None or not is_layers(row, ran):
            continue
        size = extent(row, ran)
        if size >= M:
            yield f"full: {what}: dense, though blocks run along {size} elements: {site.reason}"
        elif not site.has(Code.TOO_SHORT):
            yield f"full: {what}: too short for a block, and the reason is: {site.reason}"

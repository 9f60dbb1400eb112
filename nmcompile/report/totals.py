"""Sums over a report: products, FLOPs, times, bytes, and what is in no graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from nmcompile.reason import Code
from nmcompile.report.rows import EagerRow, Frozen

if TYPE_CHECKING:
    from nmcompile.report.report import GraphReport


class Totals(Frozen):
    """Dense FLOPs of all products, those of pruned products, and the share that pruning skips.

    A graph that several modules share, or that ran several times, counts as often
    (``GraphReport.runs``).
    """

    sites: int
    pruned_sites: int
    flops: float
    pruned_flops: float
    pruned_share: float
    unknown_sites: int = Field(
        default=0, description="products of a size that is data: all FLOPs leave them out"
    )
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
    listed_flops: float = Field(
        default=0.0,
        description="of what graphs hold and no policy can reach (skipped), as far as known; "
        "without fused attention",
    )
    eager_flops: float = Field(
        default=0.0, description="of what runs in no graph, as far as known; of explain() alone"
    )
    eager_share: float = Field(
        default=0.0, description="eager_flops, over them, listed_flops and flops"
    )


def totals(graphs: Sequence[GraphReport], eager: Sequence[EagerRow]) -> Totals:
    """The sums of these graphs, and of what ran in none."""
    sites = [(s, g.runs) for g in graphs for s in g.sites]
    pruned = [(s, n) for s, n in sites if s.pruned]
    timed = [(s, n) for s, n in sites if s.dense_us is not None]
    units = [(row, g.runs) for g in graphs for row in g.units if row.sparse]
    exact = sum(row.terms_us.get("exact", 0.0) * n for row, n in units)
    flops = sum(s.known_flops * n for s, n in sites)
    pruned_flops = sum(s.known_flops * n for s, n in pruned)
    listed = sum((s.flops or 0.0) * g.runs for g in graphs for s in g.skipped)
    of_eager = sum(r.flops or 0.0 for r in eager if not _is_attention(r))
    everything = flops + listed + of_eager
    saved = [(t.bytes, g.runs) for g in graphs for t in g.saved or () if not t.is_input]
    return Totals(
        sites=sum(n for _, n in sites),
        pruned_sites=sum(n for _, n in pruned),
        flops=flops,
        pruned_flops=pruned_flops,
        pruned_share=pruned_flops / flops if flops else 0.0,
        unknown_sites=sum(n for s, n in sites if s.flops is None),
        skipped_share=(
            sum(s.known_flops * s.dropped * n for s, n in pruned) / flops if flops else 0.0
        ),
        dense_us=sum((s.dense_us or 0.0) * n for s, n in timed) if timed else None,
        planned_us=sum((s.planned_us or 0.0) * n for s, n in timed) + exact if timed else None,
        untimed_sites=sum(n for _, n in sites) - sum(n for _, n in timed),
        saved_bytes=(
            sum(size * n for size, n in saved) if any(g.saved is not None for g in graphs) else None
        ),
        listed_flops=listed,
        eager_flops=of_eager,
        eager_share=of_eager / everything if everything else 0.0,
    )


def _is_attention(row: EagerRow) -> bool:
    return row.reason is not None and row.reason.code is Code.FUSED_ATTENTION

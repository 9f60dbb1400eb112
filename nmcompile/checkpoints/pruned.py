"""What runs in place of a model now, and which weights it prunes in the forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from nmcompile.errors import ExportError, first
from nmcompile.masks.formats import Method
from nmcompile.reason import Code
from nmcompile.report.report import GraphReport, Report
from nmcompile.report.rows import Site
from nmcompile.schedule.compiled import reports_of


def report_of_model(model: nn.Module) -> Report:
    """The report of what runs in place of the model now, all its compiled parts together.

    Names are those of ``model``, also where a part of it was compiled by itself.

    Raises:
        ExportError: nothing is compiled with this backend, or nothing of it has run.
    """
    found = list(reports_of(model))
    if not found:
        raise ExportError(
            f"no mask was ever taken of this {type(model).__name__}: it is not compiled with "
            "backend nm_sparse (nmcompile.compile, nmcompile.Schedule or torch.compile); export "
            "the object that was trained, or save its state_dict() as it is"
        )
    # Blocks that were compiled one by one have one report.
    graphs = {(path, id(g)): _below(path, g) for path, report in found for g in report.graphs}
    if not graphs:
        raise ExportError(
            f"this {type(model).__name__} is compiled, and has not run in this process: call it "
            "once in evaluation, so that it is known which weights are pruned"
        )
    policies = dict.fromkeys(report.policy for _, report in found)
    update = {"graphs": tuple(graphs.values()), "policy": "\n".join(policies)}
    return found[0][1].model_copy(update=update)


def _below(path: str, graph: GraphReport) -> GraphReport:
    """The same graph, with the names that its modules have below ``path``."""
    if not path:
        return graph
    sites = []
    for site in graph.sites:
        row = site.weight
        names = row and tuple(f"{path}.{name}" for name in row.names)
        weight = row and row.model_copy(update={"names": names})
        module = ".".join(filter(None, (path, site.module)))
        sites.append(site.model_copy(update={"module": module, "weight": weight}))
    return graph.model_copy(update={"sites": tuple(sites)})


def pruned_sites(report: Report) -> dict[str, Site]:
    """By the name of each pruned weight: the forward product that says how.

    Raises:
        ExportError: a mask cannot be written into its parameter.
    """
    found: dict[bool, dict[str, Site]] = {True: {}, False: {}}  # by whether the graph trains
    for graph in report.graphs:
        for site in graph.sites:
            row = site.weight
            if row is None or site.format is None:
                continue
            if row.obstacle:
                raise refused(site, row.obstacle)
            if Method(str(site.method)).random:
                raise refused(site, f"its mask is random ({site.method})")
            for name in row.names:
                other = found[graph.training].setdefault(name, site)
                if _how(other) != _how(site):
                    raise refused(
                        site, f"{name} is pruned in another way for {other.module or 'the model'}"
                    )
    trained, evaluated = found[True], found[False]
    evaluates = any(not graph.training for graph in report.graphs)
    if missing := sorted(trained.keys() - evaluated.keys()) if evaluates else []:
        raise ExportError(
            f"{', '.join(first(missing))}: pruned in training and not in evaluation, so that no "
            "checkpoint computes what both do"
        )
    return evaluated or trained


def refused(site: Site, why: str) -> ExportError:
    return ExportError(
        f"the mask of the weight of {site.module or 'the model'} cannot be written into its "
        f"parameter: {why}"
    )


def _how(site: Site) -> tuple[Any, ...]:
    row = site.weight
    assert row is not None
    tiles = row.tile_dims and frozenset(row.tile_dims)
    place = tiles if site.method == Method.TRANSPOSABLE else row.dims
    life = site.has(Code.KEPT)
    return site.format, site.method, site.dtype, life, place, row.groups, row.tile_groups

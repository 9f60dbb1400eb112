"""Which layers of a model no compiled graph holds: not called yet, or run eagerly and dense.

A graph break inside of a loop or a hook, a recurrent layer or a disabled function can leave parts
of a model to run eagerly, and no graph tells of them. A graph does tell which parameters are among
its inputs; what is looked for is a module with a weight that is an input of none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from nmcompile import _torch
from nmcompile.capture.regions import Region
from nmcompile.policy.paths import named_modules, own_names, without_wrappers
from nmcompile.report.report import GraphReport

#: They read rows of their weight and multiply nothing.
_READERS = (nn.Embedding, nn.EmbeddingBag)


def parameters_in(whole: nn.Module, inputs: Sequence[Any], region: Region) -> set[str]:
    """Names of the parameters of ``whole`` that are among the inputs of one of its graphs.

    A graph that several modules share has those of one: the others' are named as well.
    """
    known = {id(value) for value in inputs if isinstance(value, nn.Parameter)}
    named, own = whole.named_parameters(remove_duplicate=False), own_names(whole)
    found = {without_wrappers(name, own) for name, p in named if id(p) in known}
    for name in list(found):
        for path in region.paths:
            if name.startswith(f"{path}."):
                found.update(other + name[len(path) :] for other in region.paths)
    return found


def uncompiled(
    whole: nn.Module, graphs: Iterable[GraphReport], parameters: Collection[str] = ()
) -> list[str]:
    """Paths of modules of ``whole`` with a weight that is in no graph, in the model's order.

    Args:
        whole: the module that the user compiled.
        graphs: what is held under the path of a product is held.
        parameters: names of those that a graph has among its inputs.
    """
    held = {
        path
        for graph in graphs
        for shown in (*(s.module for s in graph.sites), *(s.path for s in graph.skipped))
        for path in Region(graph.region).each(shown)
    }
    return [
        path
        for _, path, module in named_modules(whole)
        if _multiplies(module) and path not in held and not _is_input(path, module, parameters)
    ]


def _multiplies(module: nn.Module) -> bool:
    """Whether it is a layer, or has a matrix of its own that it may multiply by."""
    if isinstance(module, _READERS):
        return False
    own = module.parameters(recurse=False)
    return isinstance(module, (nn.Linear, _torch.ConvNd)) or any(p.dim() > 1 for p in own)


def _is_input(path: str, module: nn.Module, parameters: Collection[str]) -> bool:
    own = [n for n, p in module.named_parameters(path, recurse=False) if p.dim() > 1]
    return bool(own) and all(name in parameters for name in own)

"""Build nodes that belong to a site: same module, same side of the partition, same checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from nmcompile.gemm import size_hint
from nmcompile.graph.aten import view_arguments
from nmcompile.graph.order import memory_order
from nmcompile.ops.call import Call
from nmcompile.ops.schemas import Mm

aten = torch.ops.aten

#: What a new node inherits from its site. A node without the checkpoint's marks is saved for the
#: backward, and memory grows; one without the module stack has no path in a later report.
_INHERITED = (
    "seq_nr",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "partitioner_tag",
    "autograd_backward",
    "recompute",
    "ac_graph_id",
    "stack_trace",
    "custom",
)

_SAVE = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
#: What stands for a site's product after it has been rewritten.
_PRODUCTS = (aten.mm.default, Mm.operator)


@dataclass(frozen=True)
class SiteMark:
    """``node.meta["nm"]``: what was done at this node and for whom; shown by print_readable."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass
class Inserter:
    """Adds nodes to a graph in front of a site, with its metadata and computed fake values."""

    graph: fx.Graph

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Insert in front of ``node``."""
        with self.graph.inserting_before(node):
            yield

    def call(
        self,
        site: fx.Node,
        target: Any,
        *args: Any,
        mark: str = "",
        name: str | None = None,
        **kwargs: Any,
    ) -> fx.Node:
        """Append ``target(*args)`` at the insertion point, on behalf of ``site``."""
        new = self.graph.create_node("call_function", target, args, kwargs, name)
        new.meta = {k: site.meta[k] for k in _INHERITED if k in site.meta}
        if target not in (site.target, *_PRODUCTS) and new.meta.get("recompute") in _SAVE:
            # Selective checkpointing saves the product's result, not its masked operand.
            new.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        if in_backward(site):
            # Otherwise what depends on no tangent (a seed, a pruned weight) is computed in the
            # forward and kept for the backward.
            new.meta["partitioner_tag"] = "must_be_in_backward"
        if mark:
            new.meta["nm"] = SiteMark(mark)
        new.meta["val"] = _fake_call(site, target, args, kwargs)
        return new

    def op(self, site: fx.Node, call: Call, *, mark: str = "", name: str | None = None) -> fx.Node:
        """The same for an operator whose call has named fields."""
        return self.call(site, call.operator, *call.args, mark=mark, name=name)

    def shown(self, site: fx.Node, value: fx.Node, views: Iterable[fx.Node]) -> fx.Node:
        """``value`` as views and casts show what they were made for, one after another."""
        for view in views:
            keywords: dict[str, Any] = dict(view.kwargs)
            value = self.call(site, view.target, value, *view_arguments(view), **keywords)
        return value

    def permute(self, site: fx.Node, x: fx.Node, order: list[int]) -> fx.Node:
        """``x`` with its dimensions in this order; ``x`` itself where that is its own."""
        if order == sorted(order):
            return x
        return self.call(site, aten.permute.default, x, order)

    def reshape(self, site: fx.Node, x: fx.Node, shape: list[Any]) -> fx.Node:
        """``x`` in another shape."""
        return self.call(site, aten.reshape.default, x, shape)

    def masked(self, site: fx.Node, mask: fx.Node, value: fx.Node) -> fx.Node:
        """``value`` where ``mask``, else zero; it lies in memory as ``value`` does.

        PyTorch's ``where`` gives a result that lies as the mask does, and readers of ``value`` may
        look at it through views that its own order allows.
        """
        like = value.meta["val"]
        options = {"dtype": like.dtype, "device": like.device}
        zero = self.call(site, aten.full.default, [], 0.0, **options)
        if _strides(mask.meta["val"]) == _strides(like):
            return self.call(site, aten.where.self, mask, value, zero)
        order = memory_order(like)
        rows = self.permute(site, mask, order)
        contiguous: dict[str, Any] = {"memory_format": torch.contiguous_format}
        rows = self.call(site, aten.clone.default, rows, **contiguous)
        result = self.call(site, aten.where.self, rows, self.permute(site, value, order), zero)
        return self.permute(site, result, [order.index(d) for d in range(like.dim())])

    def size(self, site: fx.Node, x: fx.Node, dim: int) -> int | fx.Node:
        """The size of ``x`` along ``dim``: a number, or a node where it is symbolic."""
        size = x.meta["val"].shape[dim]
        return size if isinstance(size, int) else self.call(site, aten.sym_size.int, x, dim)

    def sizes(self, site: fx.Node, x: fx.Node) -> list[int | fx.Node]:
        """All sizes of ``x``, each as of ``size``."""
        return [self.size(site, x, d) for d in range(x.meta["val"].dim())]


def _strides(value: torch.Tensor) -> list[int]:
    """Of the dimensions that have more than one element, where they matter."""
    sizes = zip(value.stride(), value.shape, strict=True)
    return [size_hint(stride) for stride, size in sizes if size_hint(size) != 1]


def follow(new: fx.Node, old: fx.Node) -> None:
    """``new`` replaces ``old``: it stands where the partitioner had put that."""
    if "partitioner_tag" in old.meta:
        new.meta["partitioner_tag"] = old.meta["partitioner_tag"]


#: Set at nodes of the backward that AOTAutograd did not tag.
_MARK = "nm_in_backward"


def mark_backward(nodes: Iterable[fx.Node]) -> None:
    """Let ``in_backward`` know nodes that depend on a tangent.

    AOTAutograd tags what it differentiates itself, and not the backward of a custom Function that
    Dynamo traced into the graph.
    """
    for node in nodes:
        node.meta[_MARK] = True


def in_backward(node: fx.Node) -> bool:
    """Whether the node belongs to the backward part of a joint graph."""
    tagged = node.meta.get("partitioner_tag") in ("is_backward", "must_be_in_backward")
    return tagged or _MARK in node.meta


def _fake_call(site: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values, keywords = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    known: list[Any] = [n.meta.get("val") for n in site.all_input_nodes]
    fake_mode = next((v.fake_mode for v in known if hasattr(v, "fake_mode")), nullcontext())
    with fake_mode:
        return target(*values, **keywords)

"""What a training graph keeps from the forward for the backward, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import fx

from nmcompile.gemm import size_hint
from nmcompile.ops.schemas import Compress, CompressLike, Pack


class SavedTensor(BaseModel):
    """One tensor that the backward graph reads from the forward.

    Inputs and parameters are alive anyway: ``is_input`` tells them from what costs memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[str, ...] = Field(description="symbolic where the graph is")
    dtype: str
    bytes: int = Field(description="with the sizes that were traced")
    is_input: bool
    compressed: bool = Field(description="whether it is a compressed operand")


def saved_for_backward(graphs: Sequence[fx.Graph]) -> tuple[SavedTensor, ...]:
    """The inputs of the backward graph but for the tangents; empty for an inference graph.

    Args:
        graphs: forward and backward, as the partitioner made them.
    """
    if len(graphs) < 2:
        return ()
    forward, backward = graphs
    packed = {n.name for n in forward.nodes if _is_packed(n)}
    return tuple(
        _saved(node, node.name in packed)
        for node in backward.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), torch.Tensor) and not node.name.startswith("tangents")
    )


def _is_packed(node: fx.Node) -> bool:
    if node.target in (CompressLike.operator, Pack.operator):
        return True
    return any(n.target is Compress.operator for n in node.all_input_nodes)


def _saved(node: fx.Node, compressed: bool) -> SavedTensor:
    value = node.meta["val"]
    count = math.prod(size_hint(s) for s in value.shape)
    return SavedTensor(
        name=node.name,
        shape=tuple(str(s) for s in value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        bytes=count * value.element_size(),
        is_input=node.name.startswith("primals"),
        compressed=compressed,
    )

"""Kept masks as inputs of a captured graph: Dynamo knows nothing of them, so they are appended.

    captured   f(x, w)                    compiled   f(x, w, mask_of_w)
    called     g(x, w) = f(x, w, the mask that is kept of whatever w is this time)

One graph may serve many modules, so a call's masks are those of its own weights.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from nmcompile.errors import PolicyError
from nmcompile.policy import Policy
from nmcompile.policy.rule import MaskLife
from nmcompile.report.report import GraphReport
from nmcompile.report.rows import KeptRow
from nmcompile.weight_masks import table


def check_whole(policy: Policy, modules: Iterable[nn.Module | None]) -> None:
    """Refuse to keep masks of weights that each process holds a part of.

    Raises:
        PolicyError: FSDP shards one of the modules: what it gathers is no optimizer's weight.
    """
    if not policy.keeps_masks:
        return
    for module in modules:
        if module is not None and _is_fully_sharded(module):
            raise PolicyError(
                f"{type(module).__name__} is sharded by FSDP, and masks are kept of whole weights: "
                "leave refresh and decay out of the policy, and masks are taken in each forward"
            )


def _is_fully_sharded(module: nn.Module) -> bool:
    """Whether FSDP holds parameters of the module or of a part of it in shards."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # nobody uses it who has not imported it
    if fsdp is None:
        return False
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(part, kinds) for part in module.modules())


def rows_of(reports: Sequence[GraphReport]) -> tuple[KeptRow, ...]:
    """The masks that the graphs of one capture read."""
    return tuple(row for report in reports for row in report.kept)


@contextmanager
def masks_appended(
    gm: fx.GraphModule, inputs: Sequence[Any], rows: Sequence[KeptRow]
) -> Iterator[Sequence[Any]]:
    """Within it the graph has an input for each mask behind its own: its example inputs.

    Dynamo, whose graph it is, reads it afterwards as it was.
    """
    if not rows:
        yield inputs
        return
    masks = [_as_bytes(row.stored.place(inputs[row.input])) for row in rows]
    last, added = list(gm.graph.find_nodes(op="placeholder"))[-1], list[fx.Node]()
    for number, mask in enumerate(masks):
        with gm.graph.inserting_after(added[-1] if added else last):
            node = gm.graph.placeholder(f"kept_mask_{number}")
        # It never moves, as AOTAutograd is told of parameters; Dynamo has no name for it.
        node.meta = {"example_value": mask, "tensor_dict": dict(_STATIC)}
        node._dynamo_source = None  # type: ignore[attr-defined]
        added.append(node)
    gm.recompile()
    try:
        yield [*inputs, *masks]
    finally:
        for node in added:
            gm.graph.erase_node(node)
        gm.recompile()


_STATIC = {"_dynamo_static_input_type": "unguarded"}


def with_kept_masks(compiled: Callable[..., Any], rows: Sequence[KeptRow]) -> Callable[..., Any]:
    """What was compiled of the graph with its masks, as a function of the captured inputs."""
    if not rows:
        return compiled
    wanted = [(row.input, row.stored, MaskLife(row.refresh, row.decay)) for row in rows]

    @functools.wraps(compiled)
    def run(*args: Any) -> Any:
        masks = (table.mask_for(args[i], how, life) for i, how, life in wanted)
        return compiled(*args, *map(_as_bytes, masks))

    return run


def _as_bytes(mask: Tensor) -> Tensor:
    """The same memory as Inductor reads it fast: on the CPU its loops over bool are scalar."""
    return mask.view(torch.uint8)


def with_full_masks(compiled: Callable[..., Any], rows: Sequence[KeptRow]) -> Callable[..., Any]:
    """The same for a graph that is only looked at: everything is kept."""
    if not rows:
        return compiled

    @functools.wraps(compiled)
    def run(*args: Any) -> Any:
        return compiled(*args, *(_full(args[row.input]) for row in rows))

    return run


def _full(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.uint8, requires_grad=False)

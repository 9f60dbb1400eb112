"""Several processes: which ranks draw the same masks, and whether all of them plan the same.

Data-parallel ranks must draw different masks, or averaging over them averages nothing out, although
users seed all ranks alike. Ranks that share one computation (tensor parallelism) must draw equal
ones, or what they hold in common drifts apart. So a seed is mixed with a rank: a process's own, or
the lowest of those that it shares its computation with.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from nmcompile import _torch
from nmcompile.errors import NMError, NMWarning
from nmcompile.gemm import OperandKind
from nmcompile.graph.operand_kinds import Kinds


@dataclass(frozen=True)
class Ranks:
    """The device meshes on which this process shares tensors with others (``DTensor`` inputs).

    For each mesh: its ranks as a nested list, this process's place in it, the name of its process
    group along every dimension.
    """

    meshes: tuple[tuple[Any, tuple[int, ...], tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, inputs: Sequence[Any]) -> Ranks | None:
        """The meshes of a graph's inputs; None where there is one process."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        from torch.distributed.tensor import DTensor

        found = []
        for value in inputs:
            mesh = value.device_mesh if isinstance(value, DTensor) else None
            place = mesh.get_coordinate() if mesh is not None else None
            if mesh is not None and place is not None:
                groups = tuple(mesh.get_group(d).group_name for d in range(mesh.ndim))
                found.append((mesh.mesh.tolist(), tuple(place), groups))
        return cls(tuple(m for i, m in enumerate(found) if m not in found[:i]))

    def that_share(self, graph: fx.Graph, kinds: Kinds) -> list[int]:
        """The ranks that share this process's computation, itself among them; empty if none does.

        A dimension along which weights are gathered is data parallel (sharded parameters): the
        ranks along it hold parts of one weight, but compute on different data.
        """
        gathered = _groups_of_weights(graph, kinds)
        shared: set[int] = set()
        with _torch.real_tensors():
            for mesh, place, groups in self.meshes:
                part = torch.tensor(mesh)
                for dim, (index, group) in reversed([*enumerate(zip(place, groups, strict=True))]):
                    part = part.select(dim, index) if group in gathered else part
                shared.update(part.flatten().tolist())
        return sorted(shared) if len(shared) > 1 else []


def _groups_of_weights(graph: fx.Graph, kinds: Kinds) -> set[str]:
    """Names of the process groups whose collectives take a weight."""
    return {
        arg
        for node in graph.nodes
        if node.op == "call_function" and "_c10d_functional" in str(node.target)
        if any(kinds.get(n) is OperandKind.WEIGHT for n in node.all_input_nodes)
        for arg in node.args
        if isinstance(arg, str)
    }


def check_agreement(what: str, key: str, mine: str, ranks: Iterable[int] | None = None) -> str:
    """Publish a value of this rank and compare it with what other ranks have published.

    Nobody waits: a rank may compile what others never do, and waiting for them would hang. Whoever
    comes later sees the difference. The sentence that says so, or nothing.
    """
    store = _torch.process_group_store()
    if store is None:
        return ""
    me = dist.get_rank()
    store.set(f"nmcompile/{key}/{me}", mine)
    for rank in range(dist.get_world_size()) if ranks is None else ranks:
        name = f"nmcompile/{key}/{rank}"
        if rank != me and store.check([name]):
            theirs = store.get(name).decode()
            if theirs != mine:
                return f"rank {me} and rank {rank} have different {what}: {mine} and {theirs}"
    return ""


#: For each captured graph, the settings that it was compiled with here, in order.
_settings: dict[str, list[str]] = {}


def check_plans(fingerprint: str, settings: str, decisions: str) -> None:
    """Every rank that captured this graph must have compiled it alike.

    A graph may be compiled with several policies, one after the other; the order is the same on
    all ranks.

    Args:
        fingerprint: of the captured graph.
        settings: the policy and our options.
        decisions: what was decided for each product.

    Raises:
        NMError: another rank has another policy or other options, or decided differently.
    """
    known = _settings.setdefault(fingerprint, [])
    mine = _digest(settings)
    if mine not in known:
        known.append(mine)
    graph = f"{fingerprint[:16]}/{known.index(mine)}"
    for what, digest in (("policies or options", mine), ("plans", _digest(decisions))):
        if difference := check_agreement(what, f"{what}/{graph}", digest):
            raise NMError(
                f"{difference} (digests) for the same graph: every rank must read the same policy "
                "file and run the same version of the package on the same kind of device"
            )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_seeds(ranks: Sequence[int]) -> None:
    """Warn where ranks that share a computation were seeded differently."""
    key = f"seed/{'-'.join(map(str, ranks))}"
    if difference := check_agreement("random seeds", key, str(torch.initial_seed()), ranks):
        warnings.warn(
            f"{difference}; they share one computation (tensor parallelism), and their masks would "
            "differ where it is replicated: call torch.manual_seed with the same number on both",
            NMWarning,
            stacklevel=2,
        )

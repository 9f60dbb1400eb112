"""Graphs that are called, and not computed before something reads what they give.

``explain`` needs no result of a graph. What runs outside of graphs may: code that looks at values,
or multiplies them. Mostly there is none of it, and one graph hands its results to the next or to
nobody. So a call gives tensors that are still empty, and what was called is computed, in its order,
when an operator is about to read anything.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from nmcompile import _torch
from nmcompile._dynamo import in_engine
from nmcompile._torch import OpOverload
from nmcompile.inductor.interpreter import DenseInterpreter


class _Call(NamedTuple):
    gm: fx.GraphModule
    args: list[Any]
    promised: list[Tensor | None]  # of each output; None for what is no result


class Postponed:
    """The calls that wait. ``interpreter`` takes the place of an interpreter's class."""

    def __init__(self) -> None:
        self._waiting: list[_Call] = []
        self.ended = False

    def interpreter(self, gm: fx.GraphModule) -> _Postponing:
        """What calls a graph, now or later."""
        return _Postponing(gm, self)

    def wait(self, call: _Call) -> None:
        """Compute a call when something reads."""
        self._waiting.append(call)

    def compute(self) -> None:
        """Compute everything that waits."""
        waiting, self._waiting = self._waiting, []
        for gm, args, promised in waiting:
            with torch.no_grad(), _torch.DisableAutocast():
                values = DenseInterpreter(gm).boxed_run(args)
                for promise, value in zip(promised, values, strict=True):
                    if promise is not None:
                        promise.copy_(value)

    def end(self) -> None:
        """Compute what waits if anybody still holds any of it; from now on nothing waits."""
        self.ended = True
        if not self._dropped():
            gc.collect()  # it may be a cycle of objects that holds it, such as a model's output
        if not self._dropped():
            self.compute()

    def _dropped(self) -> bool:
        """Forget the calls, from the last one, of which nobody holds a result."""
        while self._waiting and not any(map(_is_held, self._waiting[-1].promised)):
            self._waiting.pop()  # and with it what it holds of the calls before
        return not self._waiting

    def before(self, func: Any, args: Sequence[Any], in_graph: bool) -> None:
        """Compute what waits if this operator may read it, or draws random numbers in its turn.

        Around a graph (``in_graph``) PyTorch takes views of results, which reads nothing. Elsewhere
        a view may become an array of numpy, which no operator tells of.
        """
        if not self._waiting or (in_graph and _is_view(func)):
            return
        if _is_random(func) or any(isinstance(x, Tensor) for x in _torch.tree_leaves(args)):
            self.compute()

    @contextmanager
    def read_by_tolist(self, computed: Callable[[], None]) -> Iterator[None]:
        """A context in which ``Tensor.tolist``, which is no operator, calls ``computed`` first."""
        plain = Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            computed()
            return plain(tensor)

        Tensor.tolist = torch.compiler.disable(tolist)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del Tensor.tolist


class _Postponing:
    """One graph; ``boxed_run`` is that of an interpreter."""

    def __init__(self, gm: fx.GraphModule, postponed: Postponed) -> None:
        self.gm, self.postponed = gm, postponed
        self.can_wait = _can_wait(gm)

    def boxed_run(self, args: list[Any]) -> list[Any]:
        """Results that are filled later; or at once where the graph does more than compute them."""
        at_once = self.postponed.ended or in_engine() or torch.is_inference_mode_enabled()
        if at_once or not self.can_wait or not all(map(_is_plain, args)):
            self.postponed.compute()
            results: list[Any] = DenseInterpreter(self.gm).boxed_run(args)
            return results
        given = list(args)
        args.clear()
        inputs = dict(zip(self.gm.graph.find_nodes(op="placeholder"), given, strict=True))
        results, promised = [], []
        for node in _outputs(self.gm):
            is_result = isinstance(node, fx.Node) and node not in inputs
            result = _empty_like(node.meta["val"]) if is_result else inputs.get(node, node)
            results.append(result)
            # Beside the result's own version, which a backward would compare.
            promised.append(result.data if is_result else None)
        self.postponed.wait(_Call(self.gm, given, promised))
        return results


def _outputs(gm: fx.GraphModule) -> list[Any]:
    (outputs,) = gm.graph.output_node().args
    return list(outputs)  # type: ignore[arg-type]


def _empty_like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _is_held(promise: Tensor | None) -> bool:
    """Whether the memory of a result is used by more than our own tensor."""
    return promise is not None and _uses_of_memory(promise) > _uses_of_memory(torch.empty(1))


def _uses_of_memory(tensor: Tensor) -> int:
    return int(_torch.storage_use_count(tensor.untyped_storage()._cdata))


def _is_plain(value: Any) -> bool:
    """Whether it is a number, or a tensor with memory of its own kind."""
    return not isinstance(value, Tensor) or type(value) in (Tensor, nn.Parameter)


def _is_view(op: Any) -> bool:
    """Whether an operator's results are its argument's memory, which it does not touch."""
    if op is torch.ops.aten._unsafe_view.default:  # what its schema does not say
        return True
    aliases = [r.alias_info for r in op._schema.returns] if isinstance(op, OpOverload) else []
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _is_random(op: Any) -> bool:
    return isinstance(op, OpOverload) and torch.Tag.nondeterministic_seeded in op.tags


def _is_pure(target: Any) -> bool:
    """Whether a node with this target computes its result, and does nothing else."""
    if isinstance(target, OpOverload):
        return not target._schema.is_mutable
    return getattr(target, "__module__", "") == "_operator"


def _can_wait(gm: fx.GraphModule) -> bool:
    """Whether a graph only computes tensors of known sizes on the CPU, in this process."""
    called = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    values = [n.meta.get("val") for n in _outputs(gm) if isinstance(n, fx.Node)]
    alone = _torch.process_group_size() == 1
    return alone and all(map(_is_pure, called)) and all(map(_is_known, values))


def _is_known(value: Any) -> bool:
    """Whether an empty tensor can stand for it: on a GPU that would take its memory at once."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    sizes = (*value.shape, *value.stride())
    return value.device.type == "cpu" and all(isinstance(size, int) for size in sizes)

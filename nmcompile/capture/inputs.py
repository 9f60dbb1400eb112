"""What the Dynamo graph still knows and the joint graph has lost.

Under ``torch.compile`` parameters are plain inputs of the joint graph; the Dynamo graph's inputs
are still ``nn.Parameter`` objects. The fingerprint identifies everything that the plan of the
joint graph depends on, module paths included: cache keys leave node metadata out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from nmcompile._dynamo import is_grad_of_tensor, is_module_state, source_of_input
from nmcompile._torch import OpOverload, input_origin, is_wrapper, tree_map
from nmcompile.capture.ranks import Ranks
from nmcompile.capture.surroundings import doubt as doubt_of
from nmcompile.gemm import OperandKind
from nmcompile.graph.module_path import normalise
from nmcompile.graph.subgraphs import OUTSIDE_UNKNOWN
from nmcompile.policy.paths import without_wrappers
from nmcompile.reason import Code, Reason
from nmcompile.weight_masks.stored_mask import StoredMask


@dataclass(frozen=True)
class Capture:
    """One graph as Dynamo captured it: which inputs are weights, and its fingerprint.

    ``ranks``: with whom its tensors are shared; None where there is one process. ``gradients``
    are inputs that are the ``.grad`` of a parameter. ``doubt``: why every input that is no weight
    may be a gradient. ``names``: of its inputs, parameters
    and buffers by their paths. ``whole``: the weights that are whole on this process, each a tensor
    of its own. ``masks``: the inputs that were added for kept masks, by weight and how each is
    taken.
    """

    weights: frozenset[int]
    fingerprint: str
    ranks: Ranks | None = None
    gradients: frozenset[int] = frozenset()
    doubt: Reason | None = None
    names: tuple[str, ...] = ()
    whole: frozenset[int] = frozenset()
    masks: Mapping[tuple[int, StoredMask], int] = field(default_factory=dict)

    @classmethod
    def of(cls, gm: fx.GraphModule, inputs: Sequence[Any]) -> Capture:
        """Read a Dynamo graph and its example inputs (real or fake tensors)."""
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        weights = frozenset(
            i
            for i, value in enumerate(inputs)
            if isinstance(value, torch.nn.Parameter)
            or (i < len(placeholders) and is_module_state(placeholders[i]))
        )
        gradients = frozenset(_gradients(gm, inputs))
        doubt = doubt_of(gm)
        digest = hashlib.sha256()
        for line in (*_lines(gm, inputs, weights), str(sorted(gradients)), repr(doubt)):
            digest.update(line.encode())
            digest.update(b"\n")
        names = tuple(_name(p, i in weights) for i, p in enumerate(placeholders))
        key = digest.hexdigest()
        whole = frozenset(i for i in weights if not is_wrapper(inputs[i]))
        return cls(weights, key, Ranks.of(inputs), gradients, doubt, names, whole)

    def with_masks(self, masks: Sequence[tuple[int, StoredMask]]) -> Capture:
        """The same graph, to whose inputs these masks were appended."""
        first = len(self.names)
        added = {key: first + number for number, key in enumerate(masks)}
        names = [f"mask of {self.names[weight]}" for weight, _ in masks]
        weights = self.weights | frozenset(added.values())
        return replace(self, masks=added, weights=weights, names=(*self.names, *names))

    def kind_of_input(self, node: fx.Node) -> OperandKind | Reason | None:
        """The operand kind of an input of the joint or inference graph, or why it is unknown."""
        origin = input_origin(node)
        if node.op == "get_attr":
            return None  # a constant written in the model's code: torch.tensor([0.5, -1.0])
        if origin is None:
            return OUTSIDE_UNKNOWN
        what, index = origin
        if what == "tangent":
            return OperandKind.GRADIENT
        if what == "weight" or index in self.weights:
            return OperandKind.WEIGHT
        if index in self.gradients:
            return _PARAMETER_GRADIENT
        return self.doubt or OperandKind.ACTIVATION if what == "plain" else None

    def name_of_input(self, node: fx.Node) -> str:
        """What an input of the joint graph is called in the model, as far as Dynamo knows."""
        what, index = input_origin(node) or ("", None)
        if what == "tangent":
            return "gradient of an output"
        known = what == "plain" and index is not None and index < len(self.names)
        return self.names[index] if known and index is not None else str(node.target)


_PARAMETER_GRADIENT = Reason(
    Code.PARAMETER_GRADIENT, "an operand depends on the .grad of a parameter, as in an optimizer"
)


def _gradients(gm: fx.GraphModule, inputs: Sequence[Any]) -> Iterator[int]:
    """Which inputs are the ``.grad`` of a tensor: by their source, or since its owner is here."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    parameters = [*gm.parameters(), *(v for v in inputs if isinstance(v, torch.nn.Parameter))]
    owned = {id(p.grad) for p in parameters if p.is_leaf and p.grad is not None}
    for index, value in enumerate(inputs):
        named = index < len(placeholders) and is_grad_of_tensor(placeholders[index])
        if isinstance(value, torch.Tensor) and (named or id(value) in owned):
            yield index


def _name(placeholder: fx.Node, is_weight: bool) -> str:
    source = source_of_input(placeholder)
    if is_weight:
        return normalise(source) or placeholder.name
    return re.sub(r"^[LG]\[['\"](\w+)['\"]\]", r"\1", source) or placeholder.name  # "args[0]"


def _lines(gm: fx.GraphModule, inputs: Sequence[Any], weights: frozenset[int]) -> Iterator[str]:
    yield f"grad={torch.is_grad_enabled()} inference={torch.is_inference_mode_enabled()}"
    # AOTAutograd of torch 2.11 does not tell autocast to bfloat16 from autocast to float16.
    for device in sorted({"cpu", *(v.device.type for v in inputs if isinstance(v, torch.Tensor))}):
        has_autocast = torch.amp.is_autocast_available(device)  # not so the meta device
        on = has_autocast and torch.is_autocast_enabled(device)
        autocast = on and torch.get_autocast_dtype(device)
        yield f"autocast {device} {autocast}"
    for index, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            layout = (str(list(value.shape)), str(list(value.stride())), str(value.dtype))
            sharded = getattr(value, "placements", "")  # of a DTensor
            yield f"{index} {layout} {value.device} {value.requires_grad} {index in weights}"
            yield f"{sharded}"
        else:
            yield f"{index} {type(value).__name__} {value}"
    for name, module in gm.named_modules():
        if isinstance(module, fx.GraphModule):
            yield f"graph {name}"
            for node in module.graph.nodes:
                stack = node.meta.get("nn_module_stack") or {}
                last = [(without_wrappers(normalise(p)), c) for p, c in list(stack.values())[-1:]]
                where = [f"{path}:{_qualified(c)}" for path, c in last]
                yield f"{node.op} {node.name} {_qualified(node.target)} {where} {_stable(node)}"


def _qualified(target: Any) -> str:
    """A name without addresses."""
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target)
    name = getattr(target, "__qualname__", None) or getattr(target, "_name", None)
    return f"{getattr(target, '__module__', '')}.{name or type(target).__qualname__}"


def _stable(node: fx.Node) -> str:
    """The arguments of a node as text, without objects whose repr holds an address."""
    plain = (bool, int, float, complex, str, torch.dtype, torch.device, fx.Node, type(None))
    keep: Callable[[Any], Any] = lambda v: v if isinstance(v, plain) else type(v).__qualname__  # noqa: E731
    return str(tree_map(keep, (list(node.args), dict(node.kwargs))))

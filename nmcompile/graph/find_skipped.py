"""Find what multiplies matrices but is no GEMM node, so that a report can say why it is left.

A library's own operator may multiply inside: it is listed where it reads two matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from nmcompile.graph.grouped import is_grouped
from nmcompile.graph.module_path import module_path
from nmcompile.graph.subgraphs import subgraphs
from nmcompile.reason import Code, Reason

#: Operator name (without overload) or a prefix that ends in "*" -> why it is not rewritten.
_REASONS: dict[str, Reason] = {
    "aten._scaled_dot_product_*": Reason(
        Code.FUSED_ATTENTION,
        "fused attention: the products inside are activation times activation and never leave "
        "the kernel",
    ),
    "aten._flash_attention_*": Reason(Code.FUSED_ATTENTION, "fused attention kernel"),
    "aten._efficient_attention_*": Reason(Code.FUSED_ATTENTION, "fused attention kernel"),
    "flex_attention*": Reason(
        Code.FUSED_ATTENTION, "fused attention: the products inside never leave the kernel"
    ),
    "aten._scaled_grouped_mm*": Reason(Code.GROUPED, "grouped matmul in 8-bit floating point"),
    "aten._scaled_mm*": Reason(
        Code.EIGHT_BIT, "8-bit floating point: 2:4 kernels take 16-bit and 32-bit operands"
    ),
    "aten._int_mm": Reason(Code.INTEGER, "integer product"),
    "aten._weight_int*": Reason(Code.QUANTISED, "product with a quantised weight"),
    "aten.mv": Reason(Code.VECTOR, "matrix times vector: bound by memory, not a GEMM"),
    "aten.addmv": Reason(Code.VECTOR, "matrix times vector: bound by memory, not a GEMM"),
    "aten.dot": Reason(Code.VECTOR, "a scalar product, not a GEMM"),
    "aten.vdot": Reason(Code.VECTOR, "a scalar product, not a GEMM"),
    "aten._thnn_fused_*": Reason(Code.RECURRENT, "fused recurrent cell"),
    "aten.mkldnn_rnn_layer*": Reason(Code.RECURRENT, "fused recurrent layer"),
    "aten._cudnn_rnn*": Reason(Code.RECURRENT, "fused recurrent layer"),
    "aten._addmm_activation": Reason(
        Code.FUSED_ACTIVATION, "product fused with its activation before this pass saw it"
    ),
    "triton_kernel_wrapper_*": Reason(
        Code.USER_KERNEL, "the user's own kernel: its inside is not visible"
    ),
}

#: Namespaces of PyTorch's operators, of which those that multiply are named above, and of ours.
_KNOWN = ("aten", "prims", "prim", "inductor", "_inductor", "rngprims", "profiler", "nm")
_COMMUNICATION = "c10d_functional"


@dataclass(frozen=True)
class Skipped:
    """A node that holds products which no policy can reach, and the reason."""

    target: str
    path: str
    module_class: str
    backward: bool
    reason: Reason


def find_skipped(graph: fx.Graph) -> list[Skipped]:
    """Every such node in graph order."""
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        target = _name(node)
        reason = _reason(target)
        if is_grouped(node):
            continue  # a product that is found
        opaque = _is_custom(node) and not subgraphs(node)
        if reason is None and opaque and len(_matrices(node)) > 1:
            text = "custom operator: a product inside is not visible"
            reason = Reason(Code.CUSTOM_OPERATOR, text)
        if reason is not None:
            path, module_class = module_path(node)
            backward = bool(node.meta.get("fwd_nn_module_stack")) or "backward" in target
            found.append(Skipped(target, path, module_class, backward, reason))
    return found


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    if packet is not None:
        return str(packet)
    name = getattr(node.target, "_name", None) or getattr(node.target, "__name__", node.target)
    return str(name)


def _is_custom(node: fx.Node) -> bool:
    namespace = getattr(node.target, "namespace", None)
    return namespace is not None and namespace not in _KNOWN and _COMMUNICATION not in namespace


def _matrices(node: fx.Node) -> list[fx.Node]:
    values = [(n, n.meta.get("val")) for n in node.all_input_nodes]
    return [n for n, v in values if isinstance(v, torch.Tensor) and v.dim() > 1]


def _reason(target: str) -> Reason | None:
    for pattern, reason in _REASONS.items():
        if target == pattern or (pattern.endswith("*") and target.startswith(pattern[:-1])):
            return reason
    return None

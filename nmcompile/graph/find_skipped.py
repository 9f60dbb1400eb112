"""Find what multiplies matrices but is no GEMM node, so that a report can say why it is left.

A library's own operator may multiply inside: it is listed where it reads two matrices.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile.gemm import size_hint
from nmcompile.graph.aten import OPERANDS
from nmcompile.graph.flops import flops_of_node
from nmcompile.graph.grouped import is_grouped
from nmcompile.graph.higher_order import held_graphs
from nmcompile.graph.module_path import module_path
from nmcompile.reason import Code, Reason

aten = torch.ops.aten

_FUSED_LAYER = Reason(
    Code.FUSED_LAYER, "a whole layer in one operator: its products never leave it"
)
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
    "aten._scaled_grouped_mm*": Reason(
        Code.GROUPED,
        "grouped matmul in 8-bit floating point: its experts' casts are not followed yet",
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
    "aten._trilinear": Reason(
        Code.BILINEAR, "bilinear layer: each element is a product of three factors, not a GEMM"
    ),
    "aten._addmm_activation": Reason(
        Code.FUSED_ACTIVATION, "product fused with its activation before this pass saw it"
    ),
    "aten._transformer_encoder_layer_fwd": _FUSED_LAYER,
    "aten._native_multi_head_attention": _FUSED_LAYER,
    "aten.conv_tbc*": _FUSED_LAYER,
    **dict.fromkeys(
        ("aten._cdist_*", "aten._euclidean_dist"),
        Reason(Code.SOLVER, "distances, whose product is of norms and features, not a layer's"),
    ),
    **dict.fromkeys(
        (
            *("aten.linalg_inv_ex", "aten.linalg_lu*", "aten.linalg_ldl*", "aten.linalg_qr"),
            *("aten.linalg_cholesky*", "aten.linalg_eig*", "aten.linalg_lstsq", "aten.linalg_pinv"),
            *("aten.linalg_solve_triangular", "aten.linalg_householder*", "aten.linalg_matrix_exp"),
            *("aten._linalg_solve*", "aten._linalg_svd", "aten._linalg_eig*", "aten._linalg_det"),
            *("aten._linalg_slogdet", "aten.cholesky_*", "aten.triangular_solve", "aten.ormqr"),
        ),
        Reason(Code.SOLVER, "a solver or decomposition of matrices, which multiplies inside"),
    ),
    **dict.fromkeys(
        (
            *("aten._cslt_sparse_mm", "aten._sparse_semi_structured*", "aten._sparse_mm*"),
            *("aten._sparse_addmm", "aten.sparse_sampled_addmm"),
        ),
        Reason(Code.SPARSE_OPERAND, "a product with an operand that is sparse already"),
    ),
    "triton_kernel_wrapper_*": Reason(
        Code.USER_KERNEL, "the user's own kernel: its inside is not visible"
    ),
}

#: Namespaces of PyTorch's operators, of which those that multiply are named above, and of ours.
_KNOWN = ("aten", "prims", "prim", "inductor", "_inductor", "rngprims", "profiler", "nm")
_COMMUNICATION = "c10d_functional"

_DECOMPOSED = Reason(
    Code.DECOMPOSED,
    "a product with one row, column or term, which Inductor writes as multiplications and a sum",
)
#: What may have been written so, without overload.
_WRITTEN_OUT = (
    *{target.overloadpacket for target in OPERANDS},
    *(aten.mv, aten.addmv, aten.dot, aten.vdot),
)
#: The same by the name of the function, method or module that a model calls.
_CALLED = {
    **{str(packet).removeprefix("aten."): packet for packet in _WRITTEN_OUT},
    **dict.fromkeys(("Linear", "linear", "matmul", "__matmul__"), aten.mm),
}


@dataclass(frozen=True)
class Skipped:
    """A node that holds products which no policy can reach, and the reason.

    ``sizes`` are those of its result. ``flops`` is None where it is not known: of fused attention,
    of a user's own kernels and operators.
    """

    target: str
    path: str
    module_class: str
    backward: bool
    reason: Reason
    sizes: tuple[str, ...] = ()
    flops: float | None = None


def find_skipped(graph: fx.Graph) -> list[Skipped]:
    """Every such node in graph order."""
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if is_grouped(node):
            continue  # a product that is found
        if is_written_out(node):
            found.append(_skipped(node, _written_from(node), _DECOMPOSED))
            continue
        values = [] if held_graphs(node) else [n.meta.get("val") for n in node.all_input_nodes]
        reason = reason_of(node.target, sum(map(is_matrix, values)))
        if reason is not None:
            found.append(_skipped(node, node.target, reason))
    return found


def _skipped(node: fx.Node, target: Any, reason: Reason) -> Skipped:
    name, value = name_of(target), node.meta.get("val")
    path, module_class = module_path(node)
    backward = bool(node.meta.get("fwd_nn_module_stack")) or "backward" in name
    sizes = tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()
    flops = _flops_written_out(node) if target is not node.target else flops_of_node(node)
    return Skipped(name, path, module_class, backward, reason, sizes, flops)


def reason_of(target: Any, matrices: int) -> Reason | None:
    """Why an operator that multiplies is no product for a policy; None where it is none of these.

    Args:
        target: an operator, or another function that a graph calls.
        matrices: how many it reads.
    """
    reason = _reason(name_of(target))
    if reason is None and _is_custom(target) and matrices > 1:
        text = "custom operator: a product inside is not visible"
        reason = Reason(Code.CUSTOM_OPERATOR, text)
    return reason


def solver_of(node: fx.Node) -> Reason | None:
    """What a node is part of, where that is a solver, a decomposition or distances; else None.

    A product may be what such an operator was decomposed into.
    """
    for target in (node.target, node.meta.get("original_aten")):
        name = name_of(target)
        reason = _reason(name)
        if reason is not None and reason.code is Code.SOLVER:
            return Reason(Code.SOLVER, f"part of {name}: {reason}")
    return None


def is_written_out(node: fx.Node) -> bool:
    """Whether it multiplies what a product multiplied before it was decomposed."""
    is_multiplication = node.target is aten.mul.Tensor and len(_tensors(node)) == 2
    return is_multiplication and _written_from(node) is not None


def _written_from(node: fx.Node) -> Any:
    """The product that was decomposed into this node; None for what was no product.

    A region is traced once more after that, and then names its own operators alone: what the
    model called is still known, for the backward by what its forward called.
    """
    original = getattr(node.meta.get("original_aten"), "overloadpacket", None)
    if original is not aten.mul:
        return original if original in _WRITTEN_OUT else None
    calls = node.meta.get("source_fn_stack") or node.meta.get("fwd_source_fn_stack")
    called = calls[-1][1] if calls else ""
    return _CALLED.get(getattr(called, "__name__", str(called)))


def _flops_written_out(node: fx.Node) -> float:
    return 2.0 * math.prod(size_hint(size) for size in node.meta["val"].shape)


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.args if isinstance(arg, fx.Node)]


def name_of(target: Any) -> str:
    """An operator as reports call it, without overload."""
    packet = getattr(target, "overloadpacket", target)
    if isinstance(packet, type(aten.mm)):
        return str(packet)
    return str(getattr(target, "_name", None) or getattr(target, "__name__", target))


def _is_custom(target: Any) -> bool:
    namespace = getattr(target, "namespace", None)
    return namespace is not None and namespace not in _KNOWN and _COMMUNICATION not in namespace


def is_matrix(value: Any) -> bool:
    """Whether it is a tensor that a product could read as a matrix."""
    return isinstance(value, torch.Tensor) and value.dim() > 1


@functools.cache
def _reason(target: str) -> Reason | None:
    for pattern, reason in _REASONS.items():
        if target == pattern or (pattern.endswith("*") and target.startswith(pattern[:-1])):
            return reason
    return None

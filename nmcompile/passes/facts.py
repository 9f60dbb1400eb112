"""What holds after a pass, as checks: each yields a sentence for whatever contradicts it.

All of them hold to the end of their list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nmcompile.codegen.kernel_spec import STORAGE
from nmcompile.gemm import Role
from nmcompile.graph.aten import (
    CONVERSIONS,
    OPERANDS,
    argument,
    aten,
    is_product,
    is_view,
    view_base,
)
from nmcompile.graph.float8 import source_of
from nmcompile.graph.higher_order import is_region
from nmcompile.masks.formats import Method
from nmcompile.ops.fused_schemas import FusedCompress
from nmcompile.ops.schemas import (
    Compress,
    KeepMask,
    KeepMaskRagged,
    Mm,
    Prune,
    PruneRagged,
    UnpackMask,
)
from nmcompile.passes.compress_alike import alike
from nmcompile.passes.compute_unpacked import computable
from nmcompile.passes.free_layout import bound
from nmcompile.passes.lower_kernels import can_lower, kernel_nodes
from nmcompile.passes.lower_products import library_takes
from nmcompile.passes.own_results import shared_results
from nmcompile.passes.plan import Decision, Kernels, Plan, Simulated
from nmcompile.passes.share_compressed import shared_key
from nmcompile.passes.share_pruned import shared


def products_found(plan: Plan) -> Iterator[str]:
    """Every matrix product of the graph that was traced is one of ``plan.gemms``."""
    known = {g.node for g in plan.gemms} | {p.node for p in plan.products.values()}
    for node in plan.graph.nodes:
        if node.op == "call_function" and node.target in OPERANDS and node not in known:
            yield f"{node} is a product that nobody found"


def all_decided(plan: Plan) -> Iterator[str]:
    """Every product has one decision and a place in the graph; none is pruned by a guess."""
    if [d.gemm for d in plan.decisions] != plan.gemms:
        yield f"{len(plan.gemms)} products have {len(plan.decisions)} decisions"
    for d in plan.decisions:
        if (d.pruning is None) != (d.execution.how == "dense"):
            yield f"site {d.site} is {d.execution.how} with {d.pruning}"
        if d.pruning is not None and d.gemm.guess is not None:
            yield f"site {d.site} is pruned by a guess: {d.gemm.guess}"
        if plan.products[d.site].node.graph is not plan.graph:
            yield f"site {d.site} is not in the graph"


def one_role_a_node(plan: Plan) -> Iterator[str]:
    """No node computes two products of which one is pruned."""
    sites = Counter(p.node for p in plan.products.values())
    for d in _pruned(plan):
        node = plan.products[d.site].node
        if sites[node] > 1:
            yield f"{node} computes {sites[node]} products, and site {d.site} is pruned"


def forward_is_matmul(plan: Plan) -> Iterator[str]:
    """What runs sparse in fprop is a matrix product, or has become ``nm.mm``."""
    yield from _no_matmul(plan, {Role.FPROP})


def backward_is_matmul(plan: Plan) -> Iterator[str]:
    """The same of dgrad and wgrad products."""
    yield from _no_matmul(plan, {Role.DGRAD, Role.WGRAD})


def _no_matmul(plan: Plan, roles: set[Role]) -> Iterator[str]:
    for d in [d for d in _pruned(plan) if d.gemm.role in roles]:
        node = plan.products[d.site].node
        if d.execution.how == "sparse" and not is_product(node) and node.target is not Mm.operator:
            yield f"site {d.site} runs sparse and is {node.target}"


def forward_pruned(plan: Plan) -> Iterator[str]:
    """Every fprop product that is to be pruned reads a pruned or packed operand."""
    yield from _unpruned(plan, {Role.FPROP})


def backward_pruned(plan: Plan) -> Iterator[str]:
    """The same of dgrad and wgrad products."""
    yield from _unpruned(plan, {Role.DGRAD, Role.WGRAD})


def gradients_masked(plan: Plan) -> Iterator[str]:
    """Where ``backward = "exact"`` masks a gradient, the mask is one of a pruned operand."""
    for site, masked in plan.masked.items():
        mask = argument(view_base(masked), "condition")
        while is_view(mask) or mask.target in (*CONVERSIONS, aten.ne.Scalar):
            mask = mask.all_input_nodes[0]
        made = mask.target in (op.operator for op in (KeepMask, KeepMaskRagged, UnpackMask))
        if not made and mask not in plan.masks.values():
            yield f"the gradient of site {site} is masked by {mask}"


def one_compression_a_tensor(plan: Plan) -> Iterator[str]:
    """No tensor is read twice to be compressed in one way on one side of the partition."""
    seen = Counter(shared_key(node) for node in Compress.nodes(plan.graph))
    for key, count in seen.items():
        if count > 1:
            yield f"{key} is compressed {count} times"


def results_own_memory(kernels: Kernels) -> Iterator[str]:
    """No result of a region shares memory with its inputs or with another of its results."""
    for call in filter(is_region, kernels.graph.nodes):
        for match in shared_results(call):
            yield f"{match.items[0]} shares memory with {match.owner}"


def one_read_for_all_masks(kernels: Kernels) -> Iterator[str]:
    """No tensor on the CPU is read twice to be pruned by one method."""
    for requests in shared(kernels):
        yield f"{requests[0].base} is read by {' and '.join(str(r.node) for r in requests)}"


def layouts_free(kernels: Kernels) -> Iterator[str]:
    """No layout is asked for in vain on the CPU."""
    for node in bound(kernels):
        yield f"{node} draws no random numbers and asks for the strides that were traced"


def unpacked_in_kernels(kernels: Kernels) -> Iterator[str]:
    """No value that Inductor writes for a product is computed from dense copies of packed ones."""
    for node, _ in computable(kernels):
        yield f"{node} is computed from operands that are unpacked for it"


def kernels_generated(kernels: Kernels) -> Iterator[str]:
    """A compression that is left has no kernel: its method, dtype or device says why."""
    for node in Compress.nodes(kernels.graph):
        call = Compress.of(node)
        value = call.x.meta["val"]
        plain = value.is_contiguous() and len(set(call.dims)) == len(call.dims)
        plain = plain and call.method in (Method.MSE, Method.MVUE)
        if plain and value.device.type in kernels.devices and value.dtype in STORAGE:
            yield f"{node} of {value.dtype} on {value.device} could be a kernel"


def kept_places_in_kernels(kernels: Kernels) -> Iterator[str]:
    """No kernel's input is read again to be packed at the places that the kernel chose."""
    for kernel in FusedCompress.nodes(kernels.graph):
        for node in alike(kernels, kernel):
            yield f"{node} could be written by {kernel}"


def static_kernels_lowered(kernels: Kernels) -> Iterator[str]:
    """A kernel that is still an operator could not be lowered, or was not to be."""
    for node in kernel_nodes(kernels.graph):
        if kernels.lower and can_lower(node):
            yield f"{node} has known sizes on CUDA and is launched by an operator"


def static_products_lowered(kernels: Kernels) -> Iterator[str]:
    """A product that is still ``nm.mm`` pads or copies, or was not to be lowered."""
    for node in Mm.nodes(kernels.graph):
        if kernels.lower and library_takes(node):
            yield f"{node} is cuSPARSELt's product alone and is called by an operator"


def _pruned(plan: Plan) -> list[Decision]:
    return [d for d in plan.decisions if d.pruning is not None]


def _unpruned(plan: Plan, roles: set[Role]) -> Iterator[str]:
    for d in _pruned(plan):
        if d.gemm.role not in roles:
            continue
        product, result = plan.products[d.site], plan.results.get(d.site)
        if result is None:
            yield f"site {d.site} is not pruned"
        elif isinstance(result, Simulated):
            assert product.operand is not None
            operand = source_of(product.node, product.operand.arg)
            made = view_base(operand).target  # channel groups are reshaped
            masks = (Prune.operator, PruneRagged.operator)
            if made not in ((aten.where.self,) if d.site in plan.kept else masks):
                yield f"{product.node} of site {d.site} reads the unpruned {product.operand.kind}"
        elif product.node.target is not Mm.operator:
            yield f"site {d.site} runs sparse and is {product.node.target}"

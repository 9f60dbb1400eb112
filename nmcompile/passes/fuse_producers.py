"""Grow elementwise producers into the kernels that compress or prune (post-grad graphs).

    before   h = gelu(y);  a, b = nm.compress(h, seed, [1, 2], [1, 0], 2, 4, "mvue", layout)
             mm(h, other)
    after    a, b, h = nm.fused_compress([y], seed, [1, 2], spec)
             mm(h, other)                              h is written by the kernel, once

    before   h = gelu(y);  pruned = nm.prune(h, None, 0, 2, 4, [1], "mse");  mm(h, other)
    after    pruned, h = nm.fused_prune([y], None, 0, size, stride, 2, 4, [1], "mse", False, spec)

    before   (a,) = nm.compress(dy * silu(gate), ...);  (b,) = nm.compress(dy * up, ...)
    after    a, b = nm.fused_compress([dy, gate, up], ...)            one read of dy for both

A kernel is opaque to Inductor: what it reads must lie in memory. So producers join where that moves
fewer bytes: those that the kernel reads, twice where they would be written for it alone, less those
that nobody reads any more, against the operand's own write and read. A producer that others read
too is computed twice. A kernel that computes takes longer than its bytes (``execution.cost``): the
time counts as the bytes that a copy would move in it. Views that keep the order in memory are
nothing.

One kernel for two operands has the results of both in memory while its inputs still are. That is
only done where it adds little to what the graph holds (``_MOST_ADDED``): a deep model does not
notice, while the backward of one layer would need a sixth more.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from nmcompile.codegen.kernel_spec import PACKED, STORAGE, KernelSpec, Operand, computing
from nmcompile.codegen.mask_spec import STORAGE as MASK_STORAGE
from nmcompile.execution.cost import (
    OVER_BYTES,
    OVER_BYTES_COMPUTING,
    OVER_BYTES_SEVERAL,
    PACKED_BYTES,
)
from nmcompile.graph.aten import FLAT_VIEWS, item_index
from nmcompile.graph.insert import Inserter
from nmcompile.graph.memory import Memory, bytes_of, readers, reads_inside
from nmcompile.graph.order import is_dense, is_same_memory, memory_order
from nmcompile.graph.prologue import Prologue
from nmcompile.graph.unpacked import bytes_read, unpacked
from nmcompile.masks.formats import Method
from nmcompile.ops.fused_schemas import FusedCompress, FusedPrune
from nmcompile.ops.schemas import Compress, KeepMask, Mask, Prune
from nmcompile.passes.plan import Kernels

#: What a kernel of several operands may add to memory, of the graph's inputs.
_MOST_ADDED = 0.03


@dataclass(eq=False)
class _Match:
    """A compression or mask, the value that it reads (behind views) and that value's readers.

    ``shape`` is ``(R, C)``, of that value in memory.
    """

    node: fx.Node
    call: Compress | Mask
    base: fx.Node
    shape: Any
    tail: list[fx.Node] = field(default_factory=list)  # views between base and node

    @property
    def others(self) -> list[tuple[fx.Node, fx.Node]]:
        """Who else reads the value, and which of its views that is."""
        inside, views = {self.node, *self.tail}, (self.base, *self.tail)
        return [(u, view) for view in views for u in view.users if u not in inside]

    @property
    def readers(self) -> list[fx.Node]:
        """Who reads the results."""
        results = [self.node] if isinstance(self.call, Mask) else list(self.node.users)
        return [user for result in results for user in result.users]

    @property
    def kind(self) -> Any:
        """Equal for compressions that one kernel can do; each mask is one of its own."""
        call, value = self.call, self.call.x.meta["val"]
        if isinstance(call, Mask):
            return self.node
        sizes = tuple(map(str, value.shape))
        format = (call.n, call.m, call.method, call.layout)
        return (sizes, value.dtype, value.device, tuple(sorted(call.dims)), call.seed, format)


@dataclass(eq=False)
class _Kernel:
    """Compressions that one kernel does, or a mask, what it computes, and the bytes it reads."""

    matches: tuple[_Match, ...]
    prologue: Prologue
    kept: tuple[fx.Node, ...]
    bytes: int


def fuse_producers(kernels: Kernels) -> None:
    """Replace every ``nm.compress`` that a kernel can be generated for; note their specs.

    A mask is replaced where its kernel computes something.
    """
    kernels.graph.eliminate_dead_code()  # what nobody reads is no reader
    found = [_match(node, kernels.devices) for node in Compress.nodes(kernels.graph)]
    if kernels.fuse:
        masks = {
            node: cls.of(node) for cls in (Prune, KeepMask) for node in cls.nodes(kernels.graph)
        }
        found += [_mask_match(node, masks[node], kernels.devices) for node in sorted(masks)]
    matches = [match for match in found if match is not None]
    if kernels.fuse:
        room = _MOST_ADDED * sum(map(bytes_of, kernels.graph.find_nodes(op="placeholder")))
        chosen = _choose(matches, Memory(match.node for match in matches), room)
    else:
        chosen = [_plain(match) for match in matches]
    for kernel in chosen:
        if not isinstance(kernel.matches[0].call, Mask):
            kernels.specs.append(_write(kernels.graph, kernel))
        elif kernel.prologue.statements:
            _write_mask(kernels.graph, kernel)
    kernels.graph.eliminate_dead_code()


def _match(node: fx.Node, devices: tuple[str, ...]) -> _Match | None:
    call = Compress.of(node)
    value = call.x.meta["val"]
    fits = (
        value.device.type in devices
        and value.dtype in STORAGE
        and call.method in (Method.MSE, Method.MVUE)
        and value.is_contiguous()
        and len(set(call.dims)) == len(call.dims)
    )
    if not fits:
        return None
    match = _Match(node, call, call.x, value.shape)
    while _keeps_order(match.base):
        match.tail.append(match.base)
        match.base = match.base.all_input_nodes[0]
    return match


def _mask_match(node: fx.Node, call: Mask, devices: tuple[str, ...]) -> _Match | None:
    value = call.x.meta["val"]
    known = all(isinstance(size, int) for size in (*value.shape, *value.stride()))
    if value.device.type not in devices or value.dtype not in MASK_STORAGE:
        return None
    if not known or value.numel() == 0 or not is_dense(value):
        return None
    columns = value.shape[memory_order(value)[-1]]
    match = _Match(node, call, call.x, (value.numel() // columns, columns))
    while is_same_memory(match.base):
        match.tail.append(match.base)
        match.base = match.base.all_input_nodes[0]
    return match


def _keeps_order(node: fx.Node) -> bool:
    return node.target in FLAT_VIEWS and node.all_input_nodes[0].meta["val"].is_contiguous()


# -- decide ------------------------------------------------------------------------------------


def _plain(match: _Match) -> _Kernel:
    """The kernel that reads the operand as it is."""
    return _Kernel((match,), Prologue([match.base], match.shape), (), bytes_of(match.base))


def _fused(matches: tuple[_Match, ...], memory: Memory) -> _Kernel | None:
    """One kernel for all, with producers; None where there are none, or no place for it."""
    prologue = Prologue([m.base for m in matches], matches[0].shape, memory)
    if not prologue.statements:
        return None
    if isinstance(matches[0].call, Mask) and any(i.shape in PACKED for i in prologue.inputs):
        return None
    held = [m for m in matches if memory.holds(m.base)]
    if any(reads_inside(reader) for m in held for reader in readers(m.base)):
        return None  # Inductor writes the operand while it has it, and needs no second kernel
    kernel = _Kernel(matches, prologue, tuple(m.base for m in held), prologue.bytes)
    return kernel if _place(kernel) else None


def _choose(matches: list[_Match], memory: Memory, room: float) -> list[_Kernel]:
    """The kernels with which the step moves the fewest bytes.

    All begin with their producers, and give them up where that moves fewer; then two that read the
    same become one. ``room``: bytes that a kernel of several operands may add to memory.
    """
    chosen: dict[_Match, _Kernel] = {}
    plain: dict[_Match, _Kernel] = {}
    by_leaf: dict[fx.Node, list[_Match]] = defaultdict(list)
    for match in matches:
        plain[match] = _plain(match)
        chosen[match] = _fused((match,), memory) or plain[match]
        for leaf in chosen[match].prologue.leaves:
            by_leaf[leaf].append(match)

    def near(match: _Match) -> list[_Match]:
        """Those that read what this one reads, itself among them."""
        return list(
            dict.fromkeys(m for leaf in fused[match].prologue.leaves for m in by_leaf[leaf])
        )

    def saved(match: _Match, instead: _Kernel) -> float:
        """Bytes that this kernel saves in the place of those that do its work now."""
        around = near(match)
        now = [chosen[m] for m in around]
        then = [instead if m in instead.matches else chosen[m] for m in around]
        leaves = {leaf for m in around for leaf in fused[m].prologue.leaves}
        return _moved(now, leaves, memory) - _moved(then, leaves, memory)

    fused = dict(chosen)
    changing = True
    while changing:
        changing = False
        for match in matches:
            if chosen[match] is not plain[match] and saved(match, plain[match]) >= 0:
                chosen[match] = plain[match]
                changing = True
    for match in matches:
        if sum(bytes_of(item) for item in match.node.users) > room:
            continue
        for other in near(match):
            if other.node < match.node and other.kind == match.kind:
                both = _fused((*chosen[other].matches, match), memory)
                if both is not None and saved(match, both) > 0:
                    chosen.update(dict.fromkeys(both.matches, both))
                    break
    return list(dict.fromkeys(chosen.values()))


def _moved(kernels: list[_Kernel], leaves: set[fx.Node], memory: Memory) -> float:
    """Bytes that the kernels move, and Inductor's own that read the leaves."""
    kernels = list(dict.fromkeys(kernels))
    plain = {k.matches[0].base for k in kernels if not k.prologue.members}
    written = [base for base in plain if not memory.holds(base)]  # for these kernels alone
    dead = {base for kernel in kernels for base in kernel.kept}
    apart = {
        match.node for kernel in kernels if kernel.prologue.members for match in kernel.matches
    }
    for member in sorted({m for k in kernels for m in k.prologue.members}, reverse=True):
        if all(user in dead or user in apart for user in readers(member)):
            dead.add(member)
    computed = [leaf for leaf in leaves if memory.holds(leaf)]
    inside = [leaf for leaf in computed if _is_computed_with(leaf, dead)]
    moved = sum(map(_weighed, kernels)) + sum(map(bytes_of, written))
    return moved + sum(map(_bytes_inside, inside))


def _weighed(kernel: _Kernel) -> float:
    """Bytes that the kernel reads, and what a copy would move while it takes longer than one."""
    call = kernel.matches[0].call
    if isinstance(call, Mask):
        return kernel.bytes
    table = OVER_BYTES_COMPUTING if kernel.prologue.statements else OVER_BYTES
    over = table[Method(call.method), len(call.dims)]
    if len(kernel.matches) > 1:
        over = OVER_BYTES_SEVERAL
    packed = PACKED_BYTES * len(call.dims) * sum(bytes_of(m.base) for m in kernel.matches)
    moved = kernel.bytes + packed + sum(map(bytes_of, kernel.kept))
    return kernel.bytes + (over - 1) * moved


def _bytes_inside(leaf: fx.Node) -> int:
    """Bytes that Inductor's kernels read for the value, and what it takes to have it unpacked."""
    call = unpacked(leaf)
    return bytes_of(leaf) if call is None else 2 * bytes_of(leaf) + bytes_read(call)


def _is_computed_with(leaf: fx.Node, dead: set[fx.Node]) -> bool:
    """Whether a kernel of Inductor's reads the value, once nobody computes what is dead."""
    return any(reads_inside(reader) and reader not in dead for reader in readers(leaf))


def _place(kernel: _Kernel) -> fx.Node | None:
    """The node in front of which the kernel stands, its first reader; None if it reads later."""
    users = [u for m in kernel.matches for u in m.readers]
    users += [u for m in kernel.matches if m.base in kernel.kept for u, _ in m.others]
    seed = kernel.matches[0].call.seed
    read = [*kernel.prologue.leaves, *([seed] if isinstance(seed, fx.Node) else [])]
    first = min(users, default=None)
    return first if first is not None and all(node < first for node in read) else None


# -- rewrite -----------------------------------------------------------------------------------


def _write_mask(graph: fx.Graph, kernel: _Kernel) -> None:
    (match,), prologue = kernel.matches, kernel.prologue
    node, call = match.node, match.call
    assert isinstance(call, Mask)
    value = call.x.meta["val"]
    spec = computing(
        prologue.inputs,
        prologue.statements,
        prologue.value(match.base),
        value.dtype,
        keep_dense=bool(kernel.kept),
    )
    insert = Inserter(graph)
    with insert.before(_place(kernel) or node.next):
        fused = FusedPrune(
            inputs=[prologue.flat(insert, node, i) for i in spec.inputs],
            seed=call.seed,
            stream=call.stream,
            size=list(value.shape),
            stride=list(value.stride()),
            n=call.n,
            m=call.m,
            dims=call.dims,
            method=call.method,
            keep=isinstance(call, KeepMask),
            spec=spec.to_json(),
        )
        written = insert.op(node, fused, mark=repr(node.meta.get("nm", "")), name=spec.word)
        node.replace_all_uses_with(insert.call(node, operator.getitem, written, 0))
        if kernel.kept:
            dense = insert.call(node, operator.getitem, written, 1)
            for user, view in match.others:
                user.replace_input_with(view, _lying_as(insert, node, dense, view))
    graph.erase_node(node)


def _lying_as(insert: Inserter, site: fx.Node, dense: fx.Node, view: fx.Node) -> fx.Node:
    """What a kernel wrote element by element, as the view of it that others read."""
    order, sizes = memory_order(view.meta["val"]), insert.sizes(site, view)
    rows = insert.reshape(site, dense, [sizes[d] for d in order])
    return insert.permute(site, rows, [order.index(d) for d in range(len(order))])


def _write(graph: fx.Graph, kernel: _Kernel) -> KernelSpec:
    match, prologue = kernel.matches[0], kernel.prologue
    node, call = match.node, match.call
    assert isinstance(call, Compress)
    calls = [Compress.of(m.node) for m in kernel.matches]
    spec = KernelSpec(
        inputs=prologue.inputs,
        statements=prologue.statements,
        operands=tuple(
            Operand(value=prologue.value(m.base), dims=each.dims, keep_dense=m.base in kernel.kept)
            for m, each in zip(kernel.matches, calls, strict=True)
        ),
        n=call.n,
        m=call.m,
        method=call.method,  # type: ignore[arg-type]
        layout=call.layout,  # type: ignore[arg-type]
        dtype=str(call.x.meta["val"].dtype).removeprefix("torch."),
    )
    streams = [stream for each in calls for stream in each.streams]
    marks = dict.fromkeys(repr(m.node.meta["nm"]) for m in kernel.matches if "nm" in m.node.meta)
    insert = Inserter(graph)
    with insert.before(_place(kernel) or node.next):
        inputs = [prologue.flat(insert, node, i) for i in spec.inputs]
        fused = FusedCompress(inputs, call.seed, streams, spec.to_json())
        written = insert.op(node, fused, mark=" + ".join(marks), name=spec.name)
        offset = 0
        for m, each in zip(kernel.matches, calls, strict=True):
            for item in list(m.node.users):
                packed = insert.call(m.node, operator.getitem, written, offset + item_index(item))
                item.replace_all_uses_with(packed)
                graph.erase_node(item)
            offset += len(each.dims)
        for m in kernel.matches:
            if m.base in kernel.kept:
                dense = insert.call(m.node, operator.getitem, written, offset)
                for user, view in m.others:
                    user.replace_input_with(view, _lying_as(insert, m.node, dense, view))
                offset += 1
    for m in kernel.matches:
        graph.erase_node(m.node)
    return spec

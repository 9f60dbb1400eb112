"""Values that are unpacked from a packed operand, which a generated kernel reads in their place."""

from __future__ import annotations

from torch import fx

from nmcompile.codegen.kernel_spec import STORAGE, Input
from nmcompile.compressed.layouts import Layout
from nmcompile.graph.memory import bytes_of
from nmcompile.ops.schemas import Decompress, UnpackMask

Unpacked = Decompress | UnpackMask
_CLASSES: dict[object, type[Unpacked]] = {c.operator: c for c in (Decompress, UnpackMask)}


def unpacked(node: fx.Node) -> Unpacked | None:
    """The call that makes the value, where kernels can read what is packed themselves."""
    cls = _CLASSES.get(node.target)
    if cls is None:
        return None
    call = cls.of(node)
    known = call.packed.meta["val"].dtype in STORAGE and not Layout.parse(call.layout).opaque
    return call if known else None


def as_input(call: Unpacked, name: str) -> Input:
    """The input of a kernel that reads what is packed."""
    return Input(
        name=name,
        shape="packed" if isinstance(call, Decompress) else "kept",
        dtype=str(call.packed.meta["val"].dtype).removeprefix("torch."),
        source=str(call.operator),
        layout=Layout.parse(call.layout),
    )


def is_unpadded(call: Unpacked) -> bool:
    """Whether the sizes of the operand are known, and follow from those of the packed tensor."""
    sizes = (call.rows, call.columns)
    known = all(isinstance(size, int) for size in sizes)
    return known and Layout.parse(call.layout).padded(*sizes) == sizes


def bytes_read(call: Unpacked) -> int:
    """Bytes that a kernel reads for the value: all that is packed, or its metadata alone."""
    whole = bytes_of(call.packed)
    return whole if isinstance(call, Decompress) else whole // 9  # one bit in nine, of 16-bit types

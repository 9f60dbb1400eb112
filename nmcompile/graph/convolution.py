"""A convolution as an implicit GEMM: its sizes, and where its operands' blocks lie.

fprop reduces over the input channels and the kernel window, dgrad over the output channels and the
window, wgrad over batch and pixels. Blocks run along the channels of one pixel, inside one group,
or along the flattened (batch, pixel) order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from nmcompile.gemm import Operand, OperandKind, Role, Unknown
from nmcompile.graph.aten import Convolution, ConvolutionBackward


@dataclass(frozen=True)
class Geometry:
    """What a convolution and its backward share."""

    batch: Any
    pixels: tuple[Any, ...]  # one per position of the kernel: outputs, or inputs if transposed
    kernel: tuple[int, ...]
    channels_in: int  # of one group
    channels_out: int  # of one group
    groups: int
    transposed: bool
    pointwise: bool

    @classmethod
    def of(cls, node: fx.Node) -> Geometry:
        """The geometry of a convolution or of a convolution's backward."""
        call: Convolution | ConvolutionBackward
        if node.target is ConvolutionBackward.operator:
            call = ConvolutionBackward.of(node)
            y_shape = call.grad_output.meta["val"].shape
        else:
            call = Convolution.of(node)
            y_shape = node.meta["val"].shape
        x_shape, w_shape = (n.meta["val"].shape for n in (call.input, call.weight))
        kernel = tuple(w_shape[2:])
        pointwise = (
            all(k == 1 for k in kernel)
            and all(s == 1 for s in call.stride)
            and all(p == 0 for p in call.padding)
        )
        return cls(
            batch=x_shape[0],
            pixels=tuple((x_shape if call.transposed else y_shape)[2:]),
            kernel=kernel,
            channels_in=x_shape[1] // call.groups,
            channels_out=y_shape[1] // call.groups,
            groups=call.groups,
            transposed=bool(call.transposed),
            pointwise=pointwise,
        )

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def is_product(self) -> bool:
        """Is it a plain matrix product: two-dimensional, 1x1, stride 1, no padding?"""
        return self.pointwise and not self.transposed and self.rank == 2

    def channels_operand(self, kind: OperandKind | Unknown, arg: str, outputs: bool) -> Operand:
        """An image whose blocks run along the channels: of dY (``outputs``) or of X."""
        return Operand(
            kind, arg, (1,), self.channels_out if outputs else self.channels_in, self.groups
        )

    def pixels_operand(self, kind: OperandKind | Unknown, arg: str, gathered: bool) -> Operand:
        """An image whose blocks run along batch and pixels.

        ``gathered``: it is read under the kernel window (im2col), where one pixel stands in many
        blocks; the other operand is one element per pixel.
        """
        obstacle = None
        if gathered and not self.pointwise:
            window = "x".join(map(str, self.kernel))
            obstacle = f"its pixels overlap under the {window} kernel window (im2col)"
        extent = math.prod((self.batch, *self.pixels))
        return Operand(
            kind,
            arg,
            (0, *range(2, self.rank + 2)),
            extent if isinstance(extent, int) else None,
            obstacle=obstacle,
        )

    def weight_operand(self, kind: OperandKind | Unknown, reduces_over_outputs: bool) -> Operand:
        """The weight is [O, C/g, ...], or [C, O/g, ...] for a transposed convolution."""
        leading = reduces_over_outputs != self.transposed  # is dimension 0 the reduced one?
        extent = self.channels_out if reduces_over_outputs else self.channels_in
        return Operand(
            kind,
            "weight",
            dims=(0,) if leading else (1,),
            extent=extent,
            groups=self.groups if leading else 1,
            tile_dims=(0, 1),
            tile_groups=self.groups,
        )

    def sizes(self, role: Role) -> tuple[Any, Any, Any, Any]:
        """(batch = groups, M, N, K) of the implicit GEMM, without the padded positions."""
        tokens = math.prod((self.batch, *self.pixels))
        window = math.prod(self.kernel)
        ins, outs = self.channels_in, self.channels_out
        return {
            Role.FPROP: (self.groups, tokens, outs, ins * window),
            Role.DGRAD: (self.groups, tokens, ins, outs * window),
            Role.WGRAD: (self.groups, outs, ins * window, tokens),
        }[role]

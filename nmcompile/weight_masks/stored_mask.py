"""How the mask of a weight is taken of the parameter itself, outside of any graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmcompile.masks.blocks import by_channel_group
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.ops.schemas import KeepMask


@dataclass(frozen=True)
class StoredMask:
    """The mask that a product takes of its weight, in the dimensions of the parameter.

    ``dims``: those that the blocks run along, flattened in this order, or the two that the tiles
    of a transposable mask span. ``groups`` channel groups share the first of them.
    """

    format: NMFormat
    method: Method
    dims: tuple[int, ...]
    groups: int = 1

    @classmethod
    def of(
        cls,
        format: NMFormat,
        method: Method,
        along: tuple[Sequence[int], int],
        tile: tuple[Sequence[int], int] | None,
    ) -> StoredMask:
        """Equal for all products that take the same mask.

        Args:
            along: the dimensions that the product reduces over, and the groups that share the
                first of them.
            tile: the same of the tiles of a transposable mask.
        """
        if method is not Method.TRANSPOSABLE:
            dims, groups = along
            return cls(format, method, tuple(dims), groups)
        assert tile is not None
        dims, groups = tile
        return cls(format, method, tuple(dims if groups > 1 else sorted(dims)), groups)

    def take(self, weight: Tensor) -> Tensor:
        """The mask of a weight as it is now: bool, True is kept, with the weight's strides."""
        dims = self.dims
        if self.method is Method.TRANSPOSABLE:
            # In the order of memory: with ties, that decides.
            strides = weight.stride()
            dims = tuple(sorted(dims, key=lambda d: -strides[d]))
        # What a training step saves for its backward must not be an inference tensor.
        with torch.inference_mode(False), torch.no_grad():
            value, dims = self.by_group(weight.detach(), dims)
            call = (self.format.n, self.format.m, list(dims), str(self.method))
            keep: Tensor = KeepMask(value, None, 0, *call).run()
            return keep.reshape(weight.shape)

    def place(self, weight: Tensor) -> Tensor:
        """Memory for it, with nothing in it yet."""
        with torch.inference_mode(False):
            return torch.empty_like(weight, dtype=torch.bool, requires_grad=False)

    def by_group(self, value: Tensor, dims: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """With channel groups as a dimension of their own, where a block would cross two."""
        return by_channel_group(value, dims, self.dims[0], self.groups, self.format.m)

    def __str__(self) -> str:
        return f"{self.format} {self.method} along {', '.join(map(str, self.dims))}"

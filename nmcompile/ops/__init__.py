"""The operators ``torch.ops.nm``: their schemas, and one file for all implementations of each.

Importing the folder registers them.
"""

from __future__ import annotations

from nmcompile.ops import compress, grouped, masks, observe, product, ragged, seed, unpack

__all__ = ["compress", "grouped", "masks", "observe", "product", "ragged", "seed", "unpack"]

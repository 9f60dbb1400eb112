"""The operators ``torch.ops.nm``: their schemas, and every implementation of each."""

from __future__ import annotations

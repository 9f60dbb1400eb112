"""Which elements of a block survive: the formats, where blocks lie in memory, and the oracle."""

from __future__ import annotations

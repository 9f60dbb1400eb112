"""What is known beyond the graph: which inputs are weights, which modules and ranks share it."""

from __future__ import annotations

"""Facts about a graph, which no pass changes, and the one way to add nodes to it."""

from __future__ import annotations

"""Whether a pruned product runs sparse, is simulated or stays dense, and why."""

from __future__ import annotations

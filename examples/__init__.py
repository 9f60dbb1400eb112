"""Runnable examples; start with ``python -m examples.accuracy --help``."""

from __future__ import annotations

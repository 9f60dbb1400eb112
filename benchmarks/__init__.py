"""Measurements of nmcompile, each a command of its own: ``python -m benchmarks.NAME --help``."""

from __future__ import annotations

"""Short, runnable examples: ``python -m examples.distributed --help``, and policy files."""

from __future__ import annotations

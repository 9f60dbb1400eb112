"""The page of a report."""

from __future__ import annotations

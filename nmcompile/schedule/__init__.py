"""Policies by step: one compiled version for each over the same parameters."""

from __future__ import annotations

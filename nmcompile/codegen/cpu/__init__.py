"""Mask kernels for the CPU: C++ that is specialised, compiled once and loaded."""

from __future__ import annotations

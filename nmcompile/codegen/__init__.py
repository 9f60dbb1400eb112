"""Kernels: what one depends on, its text, its file, and how it is launched."""

from __future__ import annotations

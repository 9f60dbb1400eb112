"""The command line: ``nmcompile explain``, ``diff``, ``kernels``, ``policy``, ``doctor``."""

from __future__ import annotations

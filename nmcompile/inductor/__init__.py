"""Everything between Dynamo's graph and Inductor: options, hooks, compiling, planning alone."""

from __future__ import annotations

"""A GPU that does nothing, and what its log must say: ``python -m tools.nullgpu --help``.

log           the lines that the null GPU writes, and questions to them
expectations  what must hold, with its limit; measured value and verdict as a table
steps         training steps of a Llama-like layer: memory, launches, waits, inputs of kernels
masks         every kind of mask: launches and waits
"""

from __future__ import annotations

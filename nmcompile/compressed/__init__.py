"""The compressed form of an operand: its layouts, how it is packed, and which GPU reads it."""

from __future__ import annotations

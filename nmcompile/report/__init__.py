"""What was done to each product, and why: rows, totals, what is kept of them, and warnings."""

from __future__ import annotations

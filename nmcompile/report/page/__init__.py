"""A report as one HTML file: its data, the drawing of its graphs, the page."""

from __future__ import annotations

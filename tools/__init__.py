"""Tools of the project's own, which are no part of the package."""

from __future__ import annotations

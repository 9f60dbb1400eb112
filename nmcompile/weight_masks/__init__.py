"""Masks of weights that are kept between steps: how one is taken, where it lies, who counts."""

from __future__ import annotations

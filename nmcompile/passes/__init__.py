"""The passes, one file each: ``pipeline`` lists them in order, ``run`` runs and checks them."""

from __future__ import annotations

"""Weight masks written into a checkpoint."""

from __future__ import annotations

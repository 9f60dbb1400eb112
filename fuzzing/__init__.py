"""Random networks under random policies, compared with eager PyTorch: ``python -m fuzzing``."""

from __future__ import annotations

"""Kernels with a prologue: their specs as text. ``test_schemas`` holds every operator's schema."""

from __future__ import annotations

from nmcompile.ops import fused_schemas
from tests.kernels.specs import spec


def test_a_spec_is_read_once_from_its_text() -> None:
    kind = spec("silu_mul_bias", (1, 0), "mvue")
    assert fused_schemas.spec_of(kind.to_json()) == kind
    assert fused_schemas.spec_of(kind.to_json()) is fused_schemas.spec_of(kind.to_json())

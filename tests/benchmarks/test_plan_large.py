"""The plan of a large model is the same on meta, on fakes and block by block."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

import torch

from benchmarks import plan_large
from benchmarks.gpu_check.cases.networks import LlamaShape


def test_every_variant_counts_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    small = LlamaShape(
        width=64, hidden=64, heads=2, kv_heads=1, depth=3, vocabulary=64, batch=1, context=16
    )
    monkeypatch.setattr(plan_large, "SHAPE", small)
    meta, fake, each = (plan_large.measure(variant, 3) for variant in plan_large.VARIANTS)
    for column in ("products", "flops", "pruned share"):
        assert meta[column] == fake[column]
    assert each["flops"] + each["eager flops"] == fake["flops"]  # the head is in no block
    assert each["products"] == 3 * each["rows"] == fake["products"] - 3
    assert torch.get_default_dtype() is torch.float32

"""Mixtures of experts: all that they multiply is pruned under ``full``, or it is said why not.

Planned, not compiled: that such models equal eager mode and train is tested beside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("typer", "transformers"):
    pytest.importorskip(package, reason="the models are those of transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nmcompile  # noqa: E402
from benchmarks.zoo.check import unlisted  # noqa: E402
from benchmarks.zoo.entry import Entry, tokens, transformer  # noqa: E402
from benchmarks.zoo.executed import executed  # noqa: E402
from nmcompile import Report  # noqa: E402
from nmcompile.reason import Code  # noqa: E402

_COMMON = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "moe_intermediate_size": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"num_local_experts": 4},
    "Qwen3MoeForCausalLM": {"num_experts": 4, "moe_intermediate_size": 32},
    "OlmoeForCausalLM": {"num_experts": 4},
    "GptOssForCausalLM": {"num_local_experts": 4, "layer_types": ["full_attention"]},
    "DeepseekV3ForCausalLM": _LATENT,
    "GraniteMoeForCausalLM": {"num_local_experts": 4},
}


def planned(kind: str, experts: str) -> tuple[Report, list[str]]:
    """The report of a model, and where it disagrees with what an eager step multiplies."""

    def batch() -> dict[str, torch.Tensor]:
        ids = tokens()
        return {"input_ids": ids, "labels": ids.clone()}

    config = {**_COMMON, **MODELS[kind]}
    entry: Entry = transformer(kind, "", kind, config, batch, experts=experts)
    model, given = entry.build()
    ran = executed(model, lambda: entry.loss(model, given))
    model, given = entry.build()
    report = nmcompile.explain(model, **given)
    return report, unlisted(ran, report)


def not_pruned(report: Report) -> list[str]:
    """Layers that could be pruned and are not."""
    layers = [s for s in report.sites if s.op != "matmul" and s.pruned is None]
    return [f"{s.module} {s.role}: {s.reason}" for s in layers if not s.has(Code.TOO_SHORT)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_grouped_experts(kind: str) -> None:
    report, failures = planned(kind, "grouped_mm")
    assert (failures, not_pruned(report)) == ([], [])
    grouped = [s.role for s in report.sites if s.op == "grouped"]
    assert sorted(grouped) == ["dgrad"] * 2 + ["fprop"] * 2 + ["wgrad"] * 2
    assert {s.reason.code for s in report.skipped} <= {Code.FUSED_ATTENTION}
    assert report.totals.eager_flops == 0


@pytest.mark.slow
def test_experts_whose_weights_are_gathered_for_each_token() -> None:
    """Their weight gradient is that of one token: Inductor writes it as multiplications."""
    report, _ = planned("OlmoeForCausalLM", "batched_mm")
    assert not_pruned(report) == []
    experts = [s for s in report.sites if s.module.endswith("experts")]
    assert sorted(s.role for s in experts) == ["dgrad"] * 2 + ["fprop"] * 2
    assert {s.op for s in experts} == {"linear"}
    written_out = [s for s in report.skipped if s.reason.code != Code.FUSED_ATTENTION]
    assert [(s.target, s.path) for s in written_out] == [("aten.bmm", experts[0].module)] * 2


@pytest.mark.slow
def test_experts_in_a_loop_over_data_run_eagerly_and_are_counted() -> None:
    report, _ = planned("MixtralForCausalLM", "eager")
    assert {row.module for row in report.eager} == {"model.layers.0.mlp.experts"}
    assert 0.3 < report.totals.eager_share < 0.9

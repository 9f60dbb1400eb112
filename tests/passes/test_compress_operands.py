"""Sparse products in the graph: what is compressed, along which dimension, and what reads it."""

from __future__ import annotations

import expecttest
import torch
from torch import nn

from nmcompile import Policy, Rule
from tests.passes.rewritten import rewritten


def sparse(*rules: Rule) -> Policy:
    return Policy(rules=rules, execution="sparse")


class TestGraphs(expecttest.TestCase):
    maxDiff = None

    def test_a_pruned_weight_is_the_left_operand_and_takes_the_bias(self) -> None:
        rule = Rule(prune="weight", role=["fprop", "dgrad"], format="2:4", method="transposable")
        x = torch.randn(16, 64, requires_grad=True)
        self.assertExpectedInline(
            rewritten(nn.Linear(64, 32), x, policy=sparse(rule)),
            """\
pruned: "f32[32, 64]" = nm.prune(primals_1, None, 0, 2, 4, [0, 1], 'transposable')
compressed = nm.compress(pruned, None, [0, 0], [1, 0], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[16, 32]" = nm.mm(getitem, permute_default_1, 32, 'cusparselt_sm90', primals_2, True, False)
sparse_product_1: "f32[16, 64]" = nm.mm(getitem_1, permute_default_2, 64, 'cusparselt_sm90', None, True, True)
mm_1: "f32[32, 64]" = aten.mm(permute_2, primals_3)
sum_1: "f32[1, 32]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

    def test_exact_saves_the_compressed_activation(self) -> None:
        rule = Rule(prune="activation", role="fprop", format="2:4", backward="exact")
        model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 16, bias=False))
        self.assertExpectedInline(
            rewritten(model, torch.randn(8, 32), policy=sparse(rule)),
            """\
compressed = nm.compress(primals_2, None, [0], [1], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[8, 32]" = nm.mm(packed, permute, 8, 'cusparselt_sm90', None, False, False)
compressed_1 = nm.compress(sparse_product, None, [0], [1], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product_1: "f32[8, 16]" = nm.mm(packed_1, permute_1, 8, 'cusparselt_sm90', None, False, False)
decompress_default_1: "f32[8, 32]" = nm.decompress(packed_1, 8, 32, 'cusparselt_sm90')
mm_2: "f32[16, 32]" = aten.mm(permute_2, decompress_default_1)
unpack_mask_default: "b8[8, 32]" = nm.unpack_mask(packed_1, 8, 32, 'cusparselt_sm90')
mm_3: "f32[8, 32]" = aten.mm(tangents_1, permute_4)
where_self: "f32[8, 32]" = aten.where.self(unpack_mask_default, mm_3, full_default)
decompress_default: "f32[8, 32]" = nm.decompress(packed, 8, 32, 'cusparselt_sm90')
mm_4: "f32[32, 32]" = aten.mm(permute_6, decompress_default)
""",
        )

    def test_where_the_library_packs_the_backward_reads_what_was_pruned(self) -> None:
        rule = Rule(prune="activation", role="fprop", format="2:4", backward="exact")
        model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False))
        policy = Policy(rules=[rule], execution="sparse", margin=0.001)
        x = torch.randn(128, 64, dtype=torch.bfloat16)
        self.assertExpectedInline(
            rewritten(model.bfloat16(), x, policy=policy, target="b200"),
            """\
pruned: "bf16[128, 64]" = nm.prune(primals_2, None, 0, 2, 4, [1], 'mse')
packed: "bf16[128, 36]" = nm.pack(pruned, 'cusparselt')
sparse_product: "bf16[128, 64]" = nm.mm(packed, permute, 128, 'cusparselt', None, False, False)
pruned_1: "bf16[128, 64]" = nm.prune(sparse_product, None, 0, 2, 4, [1], 'mse')
packed_1: "bf16[128, 36]" = nm.pack(pruned_1, 'cusparselt')
keep_mask: "b8[128, 64]" = nm.keep_mask(sparse_product, None, 0, 2, 4, [1], 'mse')
sparse_product_1: "bf16[128, 32]" = nm.mm(packed_1, permute_1, 128, 'cusparselt', None, False, False)
mm_2: "bf16[32, 64]" = aten.mm(permute_2, pruned_1)
mm_3: "bf16[128, 64]" = aten.mm(tangents_1, permute_4)
where_self: "bf16[128, 64]" = aten.where.self(keep_mask, mm_3, full_default)
mm_4: "bf16[64, 64]" = aten.mm(permute_6, pruned)
""",
        )

    def test_where_the_library_packs_it_is_given_the_pruned_weight_transposed(self) -> None:
        rule = Rule(prune="weight", role="fprop", format="2:4", method="mse")
        policy = Policy(rules=[rule], execution="sparse", margin=0.001)
        x = torch.randn(128, 64, dtype=torch.bfloat16)
        self.assertExpectedInline(
            rewritten(nn.Linear(64, 64).bfloat16(), x, policy=policy, target="b200"),
            """\
pruned: "bf16[64, 64]" = nm.prune(permute, None, 0, 2, 4, [0], 'mse')
packed: "bf16[128, 36]" = nm.pack(permute_default, 'cusparselt')
sparse_product: "bf16[128, 64]" = nm.mm(packed, permute_default_1, 64, 'cusparselt', primals_2, True, False)
mm: "bf16[64, 64]" = aten.mm(permute_1, primals_3)
sum_1: "bf16[1, 64]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

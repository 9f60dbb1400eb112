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
pruned: "f32[64, 32]" = nm.prune(permute, None, 0, 2, 4, [1, 0], 'transposable')
compressed = nm.compress(pruned, None, [0], [0], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[16, 32]" = nm.mm(packed, permute_default, 32, 'cusparselt_sm90', primals_2, True, True)
pruned_1: "f32[32, 64]" = nm.prune(permute_1, None, 0, 2, 4, [0, 1], 'transposable')
compressed_1 = nm.compress(pruned_1, None, [0], [0], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product_1: "f32[16, 64]" = nm.mm(packed_1, permute_default_1, 64, 'cusparselt_sm90', None, True, True)
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

"""One read of a tensor writes everything that is compressed from it."""

from __future__ import annotations

import expecttest
import torch
from torch import nn

from nmcompile import Policy, Rule
from tests.passes.rewritten import rewritten

SPARSE = Policy(extends="full", execution="sparse")


def sparse(*rules: Rule) -> Policy:
    return Policy(rules=rules, execution="sparse")


class TestGraphs(expecttest.TestCase):
    maxDiff = None

    def test_linear_reads_the_gradient_once_for_both_products(self) -> None:
        model, x = nn.Linear(64, 32), torch.randn(16, 64, requires_grad=True)
        self.assertExpectedInline(
            rewritten(model, x, policy=SPARSE),
            """\
compressed = nm.compress(primals_3, None, [0], [1], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[16, 32]" = nm.mm(packed, permute, 16, 'cusparselt_sm90', None, False, False)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
compressed_1 = nm.compress(tangents_1, seed, [1, 2], [1, 0], 2, 4, 'mvue', 'cusparselt_sm90')
sparse_product_1: "f32[16, 64]" = nm.mm(getitem, permute_1, 16, 'cusparselt_sm90', None, False, False)
sparse_product_2: "f32[32, 64]" = nm.mm(getitem_1, primals_3, 32, 'cusparselt_sm90', None, False, True)
sum_1: "f32[1, 32]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

    def test_products_that_read_the_same_activation_share_it(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q, self.k = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.q(x) * self.k(x)

        rule = Rule(prune="activation", role="fprop", format="2:4")
        self.assertExpectedInline(
            rewritten(Two(), torch.randn(2, 8, 32), policy=sparse(rule)),
            """\
compressed = nm.compress(view, None, [0], [1], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[16, 16]" = nm.mm(getitem, permute, 16, 'cusparselt_sm90', None, False, False)
sparse_product_1: "f32[16, 16]" = nm.mm(getitem, permute_1, 16, 'cusparselt_sm90', None, False, False)
mm_2: "f32[16, 32]" = aten.mm(permute_2, view_2)
mm_3: "f32[16, 32]" = aten.mm(permute_5, view)
""",
        )

    def test_where_the_library_packs_equal_operands_are_pruned_and_packed_once(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q, self.k = nn.Linear(64, 32, bias=False), nn.Linear(64, 32, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.q(x) * self.k(x)

        policy = Policy(extends="full", execution="sparse", margin=0.001)
        x = torch.randn(4, 16, 64, dtype=torch.bfloat16)
        self.assertExpectedInline(
            rewritten(Two().bfloat16(), x, policy=policy, target="b200"),
            """\
pruned: "bf16[64, 64]" = nm.prune(view, None, 0, 2, 4, [1], 'mse')
packed: "bf16[128, 36]" = nm.pack(pruned, 'cusparselt')
sparse_product: "bf16[64, 32]" = nm.mm(packed, permute, 64, 'cusparselt', None, False, False)
sparse_product_1: "bf16[64, 32]" = nm.mm(packed, permute_1, 64, 'cusparselt', None, False, False)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_2: "bf16[32, 64]" = nm.prune(permute_2, seed, 2, 2, 4, [1], 'mvue')
packed_2: "bf16[128, 36]" = nm.pack(pruned_2, 'cusparselt')
sparse_product_2: "bf16[32, 64]" = nm.mm(packed_2, view_2, 32, 'cusparselt', None, False, True)
pruned_3: "bf16[32, 64]" = nm.prune(permute_5, seed, 3, 2, 4, [1], 'mvue')
packed_3: "bf16[128, 36]" = nm.pack(pruned_3, 'cusparselt')
sparse_product_3: "bf16[32, 64]" = nm.mm(packed_3, view, 32, 'cusparselt', None, False, True)
""",
        )

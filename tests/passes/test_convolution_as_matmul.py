"""A 1x1 convolution that runs sparse, as the matrix product that it is."""

from __future__ import annotations

import expecttest
import torch
from torch import nn

import nmcompile
from nmcompile import Policy
from tests.passes.rewritten import rewritten

SPARSE = Policy(extends="full", execution="sparse")


class TestGraphs(expecttest.TestCase):
    maxDiff = None

    def test_a_pointwise_convolution_is_a_matrix_product(self) -> None:
        model = nn.Conv2d(32, 16, 1)
        x = torch.randn(2, 32, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
        self.assertExpectedInline(
            rewritten(model, x, policy=SPARSE),
            """\
compressed = nm.compress(reshape_default_1, None, [0], [1], 2, 4, 'mse', 'cusparselt_sm90')
sparse_product: "f32[32, 16]" = nm.mm(packed, permute_default, 32, 'cusparselt_sm90', None, False, False)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
compressed_1 = nm.compress(reshape_default_4, seed, [1, 2], [1, 0], 2, 4, 'mvue', 'cusparselt_sm90')
sparse_product_1: "f32[32, 32]" = nm.mm(getitem_5, reshape_default_3, 32, 'cusparselt_sm90', None, False, False)
sparse_product_2: "f32[16, 32]" = nm.mm(getitem_6, reshape_default_7, 16, 'cusparselt_sm90', None, False, True)
sum_dim_int_list: "f32[16]" = aten.sum.dim_IntList(tangents_1, [0, 2, 3])
""",
        )


def test_a_report_is_of_the_convolution() -> None:
    model = nn.Conv2d(32, 16, 1)
    x = torch.randn(2, 32, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    for recipe in ("full", "weights"):
        dims = [
            [(s.role, s.target, s.dims) for s in nmcompile.explain(model, x, policy=policy).sites]
            for policy in (Policy(extends=recipe, execution=e) for e in ("simulate", "sparse"))
        ]
        assert dims[0] == dims[1]

"""Which operand of which product is pruned, along which dimension: the graphs themselves."""

from __future__ import annotations

import expecttest
import torch
from torch import nn
from torch.nn import functional as F

import nmcompile
from nmcompile import Policy, Rule
from tests.passes.rewritten import rewritten


class Attention(nn.Module):
    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, w))


class TestGraphs(expecttest.TestCase):
    maxDiff = None

    def test_linear(self) -> None:
        model, x = nn.Linear(16, 8), torch.randn(4, 16, requires_grad=True)
        self.assertExpectedInline(
            rewritten(model, x),
            """\
pruned: "f32[4, 16]" = nm.prune(primals_3, None, 0, 2, 4, [1], 'mse')
addmm: "f32[4, 8]" = aten.addmm(primals_2, pruned, permute)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[4, 8]" = nm.prune(tangents_1, seed, 1, 2, 4, [1], 'mvue')
mm: "f32[4, 16]" = aten.mm(pruned_1, permute_1)
pruned_2: "f32[8, 4]" = nm.prune(permute_2, seed, 2, 2, 4, [1], 'mvue')
mm_1: "f32[8, 16]" = aten.mm(pruned_2, primals_3)
sum_1: "f32[1, 8]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

    def test_mlp(self) -> None:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.assertExpectedInline(
            rewritten(model, torch.randn(2, 4, 16)),
            """\
pruned: "f32[8, 16]" = nm.prune(view, None, 0, 2, 4, [1], 'mse')
addmm: "f32[8, 32]" = aten.addmm(primals_2, pruned, permute)
pruned_1: "f32[8, 32]" = nm.prune(view_2, None, 0, 2, 4, [1], 'mse')
addmm_1: "f32[8, 8]" = aten.addmm(primals_5, pruned_1, permute_1)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_2: "f32[8, 8]" = nm.prune(view_4, seed, 2, 2, 4, [1], 'mvue')
mm: "f32[8, 32]" = aten.mm(pruned_2, permute_2)
pruned_3: "f32[8, 8]" = nm.prune(permute_3, seed, 3, 2, 4, [1], 'mvue')
mm_1: "f32[8, 32]" = aten.mm(pruned_3, view_2)
sum_1: "f32[1, 8]" = aten.sum.dim_IntList(view_4, [0], True)
where: "f32[2, 4, 32]" = aten.where.self(le, scalar_tensor, view_6)
pruned_4: "f32[32, 8]" = nm.prune(permute_6, seed, 4, 2, 4, [1], 'mvue')
mm_2: "f32[32, 16]" = aten.mm(pruned_4, view)
sum_2: "f32[1, 32]" = aten.sum.dim_IntList(view_7, [0], True)
""",
        )

    def test_convolution(self) -> None:
        model = nn.Conv2d(4, 8, 3, padding=1)
        self.assertExpectedInline(
            rewritten(model, torch.randn(2, 4, 6, 6, requires_grad=True)),
            """\
pruned: "f32[2, 4, 6, 6]" = nm.prune(primals_3, None, 0, 2, 4, [1], 'mse')
convolution: "f32[2, 8, 6, 6]" = aten.convolution(pruned, primals_1, primals_2, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[2, 8, 6, 6]" = nm.prune(tangents_1, seed, 1, 2, 4, [1], 'mvue')
convolution_backward_default = aten.convolution_backward(pruned_1, primals_3, primals_1, [8], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
pruned_2: "f32[2, 8, 6, 6]" = nm.prune(tangents_1, seed, 2, 2, 4, [0, 2, 3], 'mvue')
convolution_backward_default_1 = aten.convolution_backward(pruned_2, primals_3, primals_1, [8], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
sum_dim_int_list: "f32[8]" = aten.sum.dim_IntList(tangents_1, [0, 2, 3])
""",
        )

    def test_strided_grouped_convolution(self) -> None:
        # 6 channels in and 10 out per group: 4 does not divide them, so groups get a dimension.
        model = nn.Conv2d(12, 20, 3, stride=2, groups=2)
        self.assertExpectedInline(
            rewritten(model, torch.randn(2, 12, 7, 7, requires_grad=True)),
            """\
pruned: "f32[2, 2, 6, 7, 7]" = nm.prune(reshape_default, None, 0, 2, 4, [2], 'mse')
convolution: "f32[2, 20, 3, 3]" = aten.convolution(reshape_default_1, primals_1, primals_2, [2, 2], [0, 0], [1, 1], False, [0, 0], 2)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[2, 2, 10, 3, 3]" = nm.prune(reshape_default_2, seed, 1, 2, 4, [2], 'mvue')
convolution_backward_default = aten.convolution_backward(reshape_default_3, primals_3, primals_1, [20], [2, 2], [0, 0], [1, 1], False, [0, 0], 2, [True, False, False])
pruned_2: "f32[2, 20, 3, 3]" = nm.prune(tangents_1, seed, 2, 2, 4, [0, 2, 3], 'mvue')
convolution_backward_default_1 = aten.convolution_backward(pruned_2, primals_3, primals_1, [20], [2, 2], [0, 0], [1, 1], False, [0, 0], 2, [False, True, False])
sum_dim_int_list: "f32[20]" = aten.sum.dim_IntList(tangents_1, [0, 2, 3])
""",
        )

    def test_attention(self) -> None:
        self.assertExpectedInline(
            rewritten(Attention(), torch.randn(2, 4, 8)),
            """\
pruned: "f32[8, 8]" = nm.prune(view, None, 0, 2, 4, [1], 'mse')
addmm: "f32[8, 24]" = aten.addmm(primals_3, pruned, permute)
bmm: "f32[4, 4, 4]" = aten.bmm(view_3, view_4)
sum_1: "f32[2, 2, 4, 1]" = aten.sum.dim_IntList(exp, [-1], True)
bmm_1: "f32[4, 4, 4]" = aten.bmm(view_6, view_7)
pruned_1: "f32[8, 8]" = nm.prune(view_10, None, 0, 2, 4, [1], 'mse')
addmm_1: "f32[8, 8]" = aten.addmm(primals_5, pruned_1, permute_4)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_2: "f32[8, 8]" = nm.prune(view_12, seed, 4, 2, 4, [1], 'mvue')
mm: "f32[8, 8]" = aten.mm(pruned_2, permute_5)
pruned_3: "f32[8, 8]" = nm.prune(permute_6, seed, 5, 2, 4, [1], 'mvue')
mm_1: "f32[8, 8]" = aten.mm(pruned_3, view_10)
sum_2: "f32[1, 8]" = aten.sum.dim_IntList(view_12, [0], True)
bmm_2: "f32[4, 4, 4]" = aten.bmm(permute_10, view_16)
bmm_3: "f32[4, 4, 4]" = aten.bmm(view_16, permute_11)
sum_3: "f32[2, 2, 4, 1]" = aten.sum.dim_IntList(mul, [-1], True)
bmm_4: "f32[4, 4, 4]" = aten.bmm(permute_12, view_19)
bmm_5: "f32[4, 4, 4]" = aten.bmm(view_19, permute_13)
pruned_4: "f32[24, 8]" = nm.prune(permute_16, seed, 10, 2, 4, [1], 'mvue')
mm_2: "f32[24, 8]" = aten.mm(pruned_4, view)
sum_4: "f32[1, 24]" = aten.sum.dim_IntList(view_23, [0], True)
""",
        )

    def test_tied_weights(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
                self.head.weight = self.embedding.weight

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                return self.head(self.embedding(tokens))

        tokens = torch.randint(0, 12, (2, 4))
        lines = rewritten(Tied(), tokens, policy="weights").splitlines(keepends=True)
        self.assertExpectedInline(
            # torch 2.11 writes the embedding's gradient with a where of its own.
            "".join(line for line in lines if not line.startswith("where")),
            """\
pruned: "f32[8, 12]" = nm.prune(permute, None, 0, 2, 4, [1, 0], 'transposable')
mm: "f32[8, 12]" = aten.mm(view, pruned)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[12, 8]" = nm.prune(permute_1, seed, 1, 2, 4, [1], 'mvue')
mm_1: "f32[12, 8]" = aten.mm(pruned_1, view)
pruned_2: "f32[12, 8]" = nm.prune(permute_3, None, 0, 2, 4, [0, 1], 'transposable')
mm_2: "f32[8, 8]" = aten.mm(view_2, pruned_2)
""",
        )

    def test_reused_module_draws_twice(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(self.fc(x))

        self.assertExpectedInline(
            rewritten(Twice(), torch.randn(4, 8)),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_2, None, 0, 2, 4, [1], 'mse')
mm: "f32[4, 8]" = aten.mm(pruned, permute)
pruned_1: "f32[4, 8]" = nm.prune(mm, None, 0, 2, 4, [1], 'mse')
mm_1: "f32[4, 8]" = aten.mm(pruned_1, permute_1)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_2: "f32[8, 4]" = nm.prune(permute_2, seed, 2, 2, 4, [1], 'mvue')
mm_2: "f32[8, 8]" = aten.mm(pruned_2, mm)
pruned_3: "f32[4, 8]" = nm.prune(tangents_1, seed, 3, 2, 4, [1], 'mvue')
mm_3: "f32[4, 8]" = aten.mm(pruned_3, permute_4)
pruned_4: "f32[8, 4]" = nm.prune(permute_6, seed, 4, 2, 4, [1], 'mvue')
mm_4: "f32[8, 8]" = aten.mm(pruned_4, primals_2)
""",
        )

    def test_frozen_weight_has_no_wgrad(self) -> None:
        model = nn.Linear(8, 8, bias=False)
        model.weight.requires_grad_(False)
        x = torch.randn(4, 8, requires_grad=True)
        self.assertExpectedInline(
            rewritten(model, x),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_2, None, 0, 2, 4, [1], 'mse')
mm: "f32[4, 8]" = aten.mm(pruned, permute)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[4, 8]" = nm.prune(tangents_1, seed, 1, 2, 4, [1], 'mvue')
mm_1: "f32[4, 8]" = aten.mm(pruned_1, permute_1)
""",
        )

    def test_input_without_gradient_has_no_dgrad(self) -> None:
        self.assertExpectedInline(
            rewritten(nn.Linear(8, 8), torch.randn(4, 8)),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_3, None, 0, 2, 4, [1], 'mse')
addmm: "f32[4, 8]" = aten.addmm(primals_2, pruned, permute)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[8, 4]" = nm.prune(permute_1, seed, 1, 2, 4, [1], 'mvue')
mm: "f32[8, 8]" = aten.mm(pruned_1, primals_3)
sum_1: "f32[1, 8]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

    def test_unused_branch(self) -> None:
        class Branch(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.unused(x)
                return self.used(x)

        self.assertExpectedInline(
            rewritten(Branch(), torch.randn(4, 8)),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_3, None, 0, 2, 4, [1], 'mse')
addmm_1: "f32[4, 8]" = aten.addmm(primals_5, pruned, permute_1)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[8, 4]" = nm.prune(permute_2, seed, 1, 2, 4, [1], 'mvue')
mm: "f32[8, 8]" = aten.mm(pruned_1, primals_3)
sum_1: "f32[1, 8]" = aten.sum.dim_IntList(tangents_1, [0], True)
""",
        )

    def test_functional_linear_with_computed_weight(self) -> None:
        # A weight made of parameters alone is a weight.
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.v, self.g = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return F.linear(x, self.v * self.g)

        self.assertExpectedInline(
            rewritten(Scaled(), torch.randn(4, 8)),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_3, None, 0, 2, 4, [1], 'mse')
mm: "f32[4, 8]" = aten.mm(pruned, permute)
seed: "i64[1]" = aten.randint.low(-9223372036854775808, 9223372036854775807, [1], dtype = torch.int64, device = device(type='cpu'))
pruned_1: "f32[8, 4]" = nm.prune(permute_1, seed, 1, 2, 4, [1], 'mvue')
mm_1: "f32[8, 8]" = aten.mm(pruned_1, primals_3)
sum_1: "f32[8, 1]" = aten.sum.dim_IntList(mul_1, [1], True)
""",
        )


def test_dense_policy_changes_nothing() -> None:
    report = nmcompile.explain(Attention(), torch.randn(2, 4, 8), policy="dense")
    (graph,) = report.graphs
    assert graph.before == graph.after
    assert report.totals.pruned_share == 0
    assert {s.reason for s in report.sites} == {"the rule says dense"}


def test_a_rule_that_names_matmul_reaches_attention() -> None:
    rule = Rule(op="matmul", prune="activation", format="2:4", role="fprop")
    report = nmcompile.explain(Attention(), torch.randn(2, 4, 8), policy=Policy(rules=[rule]))
    pruned = [(str(s.op), str(s.role)) for s in report.sites if s.pruned]
    assert pruned == [("matmul", "fprop")] * 2


def test_the_last_block_of_a_ragged_dimension_is_padded() -> None:
    report = nmcompile.explain(nn.Linear(10, 6), torch.randn(3, 10))
    fprop, wgrad = report.sites
    assert fprop.format == "2:4"
    assert wgrad.pruned is None
    assert wgrad.reason == "the reduction dimension has 3 element(s), fewer than M = 4"

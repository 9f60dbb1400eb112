"""``backward = "exact"``: the mask of fprop on the result, the pruned operand in the sibling."""

from __future__ import annotations

import expecttest
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import nmcompile
from nmcompile import Policy, Rule
from tests.passes.rewritten import rewritten


def exact(kind: str) -> Policy:
    return Policy(rules=[Rule(prune=kind, role="fprop", format="2:4", backward="exact")])


class TestGraphs(expecttest.TestCase):
    maxDiff = None

    def test_activation(self) -> None:
        model, x = nn.Linear(8, 12, bias=False), torch.randn(4, 8, requires_grad=True)
        self.assertExpectedInline(
            rewritten(model, x, policy=exact("activation")),
            """\
pruned: "f32[4, 8]" = nm.prune(primals_2, None, 0, 2, 4, [1], 'mse')
keep_mask: "b8[4, 8]" = nm.keep_mask(primals_2, None, 0, 2, 4, [1], 'mse')
mm: "f32[4, 12]" = aten.mm(pruned, permute)
mm_1: "f32[12, 8]" = aten.mm(permute_1, pruned)
mm_2: "f32[4, 8]" = aten.mm(tangents_1, permute_3)
where_self: "f32[4, 8]" = aten.where.self(keep_mask, mm_2, full_default)
""",
        )

    def test_weight(self) -> None:
        model, x = nn.Linear(8, 12, bias=False), torch.randn(4, 8, requires_grad=True)
        self.assertExpectedInline(
            rewritten(model, x, policy=exact("weight")),
            """\
pruned: "f32[8, 12]" = nm.prune(permute, None, 0, 2, 4, [0], 'mse')
keep_mask: "b8[8, 12]" = nm.keep_mask(permute, None, 0, 2, 4, [0], 'mse')
mm: "f32[4, 12]" = aten.mm(primals_2, pruned)
mm_1: "f32[12, 8]" = aten.mm(permute_1, primals_2)
where_self: "f32[12, 8]" = aten.where.self(permute_default, mm_1, full_default)
mm_2: "f32[4, 8]" = aten.mm(tangents_1, permute_default_1)
""",
        )


def test_the_report_says_what_the_backward_sites_read() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    report = nmcompile.explain(nn.Linear(8, 8), x, policy=exact("activation"))
    fprop, dgrad, wgrad = report.sites
    assert fprop.backward == "exact"
    assert dgrad.reason.endswith(
        "the result is masked like the activation of fprop (backward = exact)"
    )
    assert wgrad.reason.endswith("reads the pruned activation of fprop (backward = exact)")


def test_straight_through_touches_no_backward_site() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    report = nmcompile.explain(nn.Linear(8, 8), x, policy="activations")
    assert [s.backward for s in report.sites] == ["straight-through", None, None]
    assert "keep_mask" not in report.graphs[0].after


def test_not_for_products_of_two_activations() -> None:
    rule = Rule(op="matmul", prune="activation", role="fprop", format="2:4", backward="exact")
    a = torch.randn(2, 8, 8)
    (site,) = nmcompile.explain(lambda x: x @ x, a, policy=Policy(rules=[rule])).sites
    assert site.pruned is None
    assert "needs a product with a weight" in site.reason


def test_a_masked_gradient_lies_in_memory_as_it_did() -> None:
    """Its readers look at it through views, which another order in memory would not allow."""

    def step(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        w = w.detach().requires_grad_()
        loss = torch.einsum("bti,oi->bot", x, w.view(4, 8)).square().sum()
        (dw,) = torch.autograd.grad(loss, w)
        return dw

    w, x = torch.randn(32), torch.randn(4, 1, 8)
    gm = make_fx(step)(w, x)
    result = nmcompile.rewrite(gm, exact("weight"), weights="w_*")
    assert [str(s.pruned) for s in result.meta["nm_report"].sites if s.pruned] == ["weight"]
    mask = nmcompile.functional.keep_mask(w.view(4, 8))
    dy = 2 * x[:, 0] @ (w.view(4, 8) * mask).t()
    torch.testing.assert_close(result(w, x), (dy.t() @ x[:, 0] * mask).view(32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_a_gradient_of_one_token_is_a_multiplication_and_as_exact(
    kind: str, dtype: torch.dtype
) -> None:
    """Experts by gathered weights: the weight gradient of a token has one term, and no product."""

    class Gathered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 12, 8, dtype=dtype))

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return torch.bmm(self.weight[ids], x.unsqueeze(-1)).squeeze(-1)

    model, x = Gathered(), torch.randn(6, 8, dtype=dtype, requires_grad=True)
    ids, dy = torch.tensor([0, 2, 2, 0, 0, 2]), torch.randn(6, 12, dtype=dtype)
    report = nmcompile.explain(model, x, ids, policy=exact(kind))
    assert [s.pruned for s in report.sites if s.role == "fprop"] == [kind]
    assert "of one term" in report.sites[0].reason
    torch.compile(model, backend="nm_sparse", options={"policy": exact(kind)})(x, ids).backward(dy)
    w = model.weight.detach()[ids]
    pruned = nmcompile.functional.prune
    x_read = pruned(x.detach()) if kind == "activation" else x.detach()
    w_read = pruned(w) if kind == "weight" else w
    dx, dw = torch.einsum("to,toi->ti", dy, w_read), dy[:, :, None] * x_read[:, None]
    dx, dw = (dx * (x_read != 0), dw) if kind == "activation" else (dx, dw * (w_read != 0))
    torch.testing.assert_close(x.grad, dx)
    expected = torch.zeros(3, 12, 8, dtype=dtype).index_add(0, ids, dw)
    # Sums of several tokens are rounded after each.
    near = {"rtol": 0.02, "atol": 0.05} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(model.weight.grad, expected, **near)


def test_in_a_region_too_and_its_input_stays_as_it_is() -> None:
    """The region saves its input, which is the user's: PyTorch would let the backward write it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 1, dtype=torch.float64)

        @torch.compiler.nested_compile_region
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.tanh()).clone()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x) + self.block(x.tanh())

    class Pruned(torch.autograd.Function):
        """2:4 in the forward; the gradient is that of the unpruned activation."""

        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return nmcompile.functional.prune(x)

        @staticmethod
        def backward(ctx, dx):  # type: ignore[no-untyped-def]
            return dx

    model, x = Model(), torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    expected_x = before.clone().requires_grad_()
    fc = model.block.fc
    outputs = [fc(Pruned.apply(v.tanh())) for v in (expected_x, expected_x.tanh())]
    expected = torch.autograd.grad(sum(outputs).square().sum(), (expected_x, fc.weight))
    compiled = torch.compile(model, backend="nm_sparse", options={"policy": exact("activation")})
    compiled(x).square().sum().backward()
    (fprop, *_) = nmcompile.last_report().sites
    assert "of one term is that of the unpruned activation" in fprop.reason
    assert torch.equal(x, before)
    torch.testing.assert_close(x.grad, expected[0])
    torch.testing.assert_close(fc.weight.grad, expected[1])


class MultiplyTwice(torch.autograd.Function):
    """One weight, read as it is by one product and transposed by the other."""

    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        multiply = torch.bmm if x.dim() == 3 else torch.mm
        t = multiply(x, w.mT).tanh()
        ctx.save_for_backward(x, w, t)
        return multiply(t, w)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w, t = ctx.saved_tensors
        multiply = torch.bmm if x.dim() == 3 else torch.mm
        d = multiply(g, w.mT) * (1 - t**2)
        return multiply(d, w), multiply(t.mT, g) + multiply(d.mT, x)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("width", [16, 1])
def test_a_gradient_is_that_of_the_product_which_reads_the_weight_the_other_way(
    width: int, batch: tuple[int, ...]
) -> None:
    """All are of one number and one size; where ``width`` is 1 two of them are multiplications."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(*batch, width, 16, dtype=torch.float64) / 4)
    x = torch.randn(*batch, 16, 16, dtype=torch.float64, requires_grad=True)
    prune = nmcompile.functional.prune
    unpruned = (prune(x) @ w.mT).tanh().detach()
    t = prune(unpruned) if width > 1 else unpruned
    masked = 1 if width == 1 and not batch else prune(x) != 0  # a 2-D multiplication is not
    g = torch.randn_like(x)
    d = torch.where(t != 0, g @ w.mT, 0) * (1 - unpruned**2)
    expected = (d @ w) * masked, t.mT @ g + d.mT @ prune(x)

    policy = exact("activation")
    compiled = torch.compile(MultiplyTwice.apply, backend="nm_sparse", options={"policy": policy})
    y = compiled(x, w)
    torch.testing.assert_close(y, t @ w)
    y.backward(g)
    torch.testing.assert_close((x.grad, w.grad), expected)

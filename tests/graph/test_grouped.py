"""Grouped products are found with their roles, sizes and blocks, whoever's operator they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmcompile
from nmcompile.reason import Code
from nmcompile.report.rows import Site

E, S, I, O = 3, 24, 8, 16  # noqa: E741
OFFS = torch.tensor([5, 5, 18], dtype=torch.int32)


class Experts(nn.Module):
    """A stack of weights ``[E, O, I]``, as transformers stores them."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, O, I, dtype=dtype))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


def by_row(x: Tensor, w: Tensor) -> Tensor:
    return F.grouped_mm(x, w.transpose(1, 2), offs=OFFS)


def by_column(x: Tensor, w: Tensor) -> Tensor:
    return torch._grouped_mm(w, x.t(), OFFS)


def batched(x: Tensor, w: Tensor) -> Tensor:
    return torch._grouped_mm(x.expand(E, S, I).contiguous(), w.transpose(1, 2))


def fallback(x: Tensor, w: Tensor) -> Tensor:
    return torch.ops.transformers.grouped_mm_fallback(x, w.transpose(1, 2), OFFS)


def found(
    multiply: Callable[[Tensor, Tensor], Tensor], policy: str = "full", **keys: object
) -> list[Site]:
    dtype = torch.bfloat16
    if multiply is fallback:
        pytest.importorskip("transformers", reason="its operators are looked at")
        import transformers.integrations.moe  # noqa: F401

        dtype = torch.float32
    x = torch.randn(S, I, dtype=dtype, requires_grad=True)
    report = nmcompile.explain(Experts(multiply, dtype), x, policy=policy, **keys)
    assert report.skipped == ()
    return list(report.sites)


ONE = 2 * S * I * O
#: Role -> (sizes, dimensions of the pruned operand's blocks, FLOPs).
EXPECTED = {
    by_row: {
        "fprop": ((1, S, O, I), (1,), ONE),
        "dgrad": ((1, S, I, O), (1,), ONE),
        "wgrad": ((1, O, I, S), (1,), ONE),
    },
    by_column: {
        "fprop": ((1, O, S, I), (0,), ONE),
        "dgrad": ((1, S, I, O), (1,), ONE),
        "wgrad": ((1, O, I, S), (1,), ONE),
    },
    batched: {
        "fprop": ((E, S, O, I), (2,), E * ONE),
        "dgrad": ((E, S, I, O), (2,), E * ONE),
        "wgrad": ((E, O, I, S), (2,), E * ONE),
    },
    fallback: {
        "fprop": ((1, S, O, I), (1,), ONE),
        "dgrad": ((1, S, I, O), (1,), ONE),
        "wgrad": ((1, I, O, S), (0,), ONE),
    },
}


@pytest.mark.parametrize("multiply", EXPECTED)
def test_every_form_has_three_roles(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    sites = found(multiply)
    assert sorted(s.role for s in sites) == ["dgrad", "fprop", "wgrad"]
    for site in sites:
        sizes, dims, flops = EXPECTED[multiply][site.role]
        assert (site.op, tuple(map(int, site.sizes)), site.dims) == ("grouped", sizes, dims)
        assert (site.flops, site.guess) == (flops, None)
        assert site.pruned == ("activation" if site.role == "fprop" else "gradient")


def test_a_grouped_product_of_activations_is_a_matmul() -> None:
    def attention(x: Tensor, w: Tensor) -> Tensor:
        return torch._grouped_mm(x, x[:E, None] + w.transpose(1, 2)[:, :, :I], OFFS)

    sites = found(attention)
    assert {s.op for s in sites} == {"matmul"}
    assert {s.role for s in sites} == {"fprop", "dgrad"}
    assert not any(s.pruned for s in sites)


def test_only_what_is_read_of_a_backward_is_a_product() -> None:
    class Frozen(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return fallback(x, self.weight.detach())

    pytest.importorskip("transformers", reason="its operators are looked at")
    x = torch.randn(S, I, requires_grad=True)
    sites = nmcompile.explain(Frozen(fallback, torch.float32), x).sites
    assert [s.role for s in sites] == ["fprop", "dgrad"]


@pytest.mark.parametrize("multiply", [by_row, fallback])
def test_a_transposable_mask_is_one_of_every_matrix(
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> None:
    sites = found(multiply, policy="weights")
    pruned = {s.role: (s.pruned, s.method) for s in sites}
    assert pruned["fprop"] == pruned["dgrad"] == ("weight", "transposable")
    assert pruned["wgrad"] == ("gradient", "mvue")


@pytest.mark.parametrize("width", [12, 16])
def test_rows_that_the_product_would_refuse_stay_dense(width: int) -> None:
    """A mask's result has no gaps; the product takes rows of multiples of 16 bytes."""
    w = nn.Parameter(torch.randn(E, width, O, dtype=torch.bfloat16))
    x = torch.randn(S, 24, dtype=torch.bfloat16, requires_grad=True)

    def half(x: Tensor) -> Tensor:
        return F.grouped_mm(x[:, :width], w, offs=OFFS)

    pruned = {s.role: str(s.pruned) for s in nmcompile.explain(half, x).sites}
    fprop = "activation" if width == 16 else "None"
    assert pruned == {"fprop": fprop, "dgrad": "gradient", "wgrad": "gradient"}


def test_a_gpu_simulates_them_and_says_why() -> None:
    sites = found(by_row, target="h100")
    assert {s.execution for s in sites} == {"simulate"}
    assert all(s.has(Code.GROUPED) for s in sites)

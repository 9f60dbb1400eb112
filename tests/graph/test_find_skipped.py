"""What multiplies but is no product node is listed with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nmcompile
from nmcompile.reason import Code


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.fc(x), x, x)


def test_fused_attention_is_skipped_in_both_directions() -> None:
    report = nmcompile.explain(Attend(), torch.randn(2, 2, 4, 8))
    forward, backward = report.skipped
    assert forward.target == "aten._scaled_dot_product_flash_attention_for_cpu"
    assert (forward.backward, backward.backward) == (False, True)
    assert "never leave the kernel" in forward.reason.text
    assert "skipped 1 x aten._scaled_dot_product_flash_attention_for_cpu:" in str(report)


def test_integer_products_are_listed() -> None:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(a, b)

    a, b = (torch.randint(-5, 5, (32, 32), dtype=torch.int8) for _ in range(2))
    (skipped,) = nmcompile.explain(product, a, b).skipped
    assert skipped.reason.text == "integer product"


def test_a_bilinear_layer_is_listed_with_its_size() -> None:
    inputs = [torch.randn(4, 8, requires_grad=True), torch.randn(4, 6)]
    report = nmcompile.explain(nn.Bilinear(8, 6, 5), *inputs)
    assert [s.target for s in report.skipped] == ["aten._trilinear"] * 3
    assert {s.reason.code for s in report.skipped} == {Code.BILINEAR}
    assert {s.flops for s in report.skipped} == {2.0 * 4 * 8 * 6 * 5}
    assert report.skipped[0].sizes == ("4", "5")


def test_what_inductor_writes_as_multiplications_is_listed_as_the_product_it_was() -> None:
    report = nmcompile.explain(nn.Linear(16, 12), torch.randn(1, 16))
    found = [(s.target, s.reason.code, s.flops, s.backward) for s in report.skipped]
    one = 2.0 * 16 * 12
    assert found == [
        ("aten.addmm", Code.DECOMPOSED, one, False),
        ("aten.mm", Code.DECOMPOSED, one, True),
    ]

    def parts(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.einsum("bi,bi->b", x, w), x[0].dot(w[0])

    skipped = nmcompile.explain(parts, torch.randn(4, 8), torch.randn(4, 8)).skipped
    assert [(s.target, s.flops) for s in skipped] == [("aten.bmm", 64.0), ("aten.dot", 16.0)]


def test_a_solver_is_listed_and_a_norm_is_not() -> None:
    def solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(a @ a.t(), b) / torch.linalg.vector_norm(b)

    skipped = nmcompile.explain(solve, torch.randn(8, 8), torch.randn(8, 4)).skipped
    assert [(s.target, s.reason.code) for s in skipped] == [("aten._linalg_solve_ex", Code.SOLVER)]


@pytest.mark.filterwarnings("ignore::nmcompile.NMWarning")
def test_what_is_multiplied_in_distances_and_solvers_is_no_layer_s() -> None:
    codes = nn.Parameter(torch.randn(64, 8))
    x = torch.randn(32, 8, requires_grad=True)
    rows = nmcompile.explain(lambda x: torch.cdist(x, codes), x).sites
    assert [(s.op, s.pruned, s.guess and s.guess.code) for s in rows] == [
        ("matmul", None, Code.SOLVER),  # of norms and features
        ("matmul", None, Code.NO_FORWARD),
        ("matmul", None, Code.NO_FORWARD),
    ]
    w, a = nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8, requires_grad=True)
    inverse = lambda a: torch.linalg.inv(a @ a.t() + torch.eye(8)) @ w  # noqa: E731
    rows = nmcompile.explain(inverse, a).sites
    assert [(s.role, s.pruned) for s in rows if s.op == "linear"] == [
        ("fprop", "activation"),
        ("wgrad", "gradient"),
        ("dgrad", "gradient"),
    ]
    assert sum(s.guess is not None for s in rows) == 2  # A^-T dY A^-T


def test_a_multiplication_of_the_users_is_no_product() -> None:
    x = torch.randn(4, 8)
    assert nmcompile.explain(lambda x: (x * x).sum(1), x).skipped == ()


def test_a_model_of_plain_layers_skips_nothing() -> None:
    assert nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8)).skipped == ()


@torch.library.custom_op("nm_tests::multiply", mutates_args=())
def multiply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w.t()


@multiply.register_fake
def _(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


@torch.library.custom_op("nm_tests::scale", mutates_args=())
def scale(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return x * factors


@scale.register_fake
def _(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(scale(x, self.fc.bias), self.fc.weight)


@torch.no_grad()
def test_an_operator_of_a_library_is_listed_where_it_reads_two_matrices() -> None:
    (skipped,) = nmcompile.explain(Custom(), torch.randn(4, 8)).skipped
    assert (skipped.target, skipped.backward) == ("nm_tests.multiply", False)
    assert skipped.reason.text == "custom operator: a product inside is not visible"


class Narrow(nn.Module):
    """Its products have one term forward (without a bias) or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, 1), nn.Linear(1, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x).relu()) * x


class NarrowRegion(Narrow):
    @torch.compiler.nested_compile_region
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_a_region_says_what_its_multiplications_were_and_its_products_keep_their_roles() -> None:
    x, found = torch.randn(4, 16, requires_grad=True), []
    for block in (Narrow(), NarrowRegion()):
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(16, 16), block)
        torch.compile(model, backend="nm_sparse", options={"policy": "full"})(x).sum().backward()
        report = nmcompile.last_report()
        assert not any(site.guess for site in report.sites)
        skipped = [(s.target, s.reason.code, s.flops, s.backward) for s in report.skipped]
        sites = [(s.module, s.role, s.sizes, s.pruned) for s in report.sites]
        found.append((sorted(skipped, key=str), sorted(sites, key=str)))
    assert found[0] == found[1]
    assert len(found[0][0]) == 2

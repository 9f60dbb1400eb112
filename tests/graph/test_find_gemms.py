"""Every product is found, with its role, sizes, operand kinds and reduction dimensions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile.errors import NMWarning
from nmcompile.reason import Code
from nmcompile.report.rows import Site


def sites(model: Any, *args: Any, policy: Any = "dense") -> list[Site]:
    return list(nmcompile.explain(model, *args, policy=policy).sites)


def summary(found: list[Site]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(str(s.op), str(s.role), tuple(map(int, s.sizes))) for s in found]


def test_linear_sizes_are_those_of_the_three_gemms() -> None:
    x = torch.randn(2, 3, 16, requires_grad=True)
    found = sites(nn.Linear(16, 8), x)
    assert summary(found) == [
        ("linear", "fprop", (1, 6, 8, 16)),
        ("linear", "dgrad", (1, 6, 16, 8)),
        ("linear", "wgrad", (1, 8, 16, 6)),
    ]
    assert all(s.flops == 2 * 6 * 8 * 16 for s in found)
    assert {(s.dtype, s.device) for s in found} == {("float32", "cpu")}
    assert [tuple(map(str, s.operands)) for s in found] == [
        ("activation", "weight"),
        ("gradient", "weight"),
        ("gradient", "activation"),
    ]


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(8, 12, 3), (2, 8, 10)),
    "2d": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=2), (2, 8, 9, 9)),
    "3d": (lambda: nn.Conv3d(8, 12, 2), (2, 8, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(16, 24, 3, groups=2), (2, 16, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(8, 12, 1, bias=False), (2, 8, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2), (2, 8, 4, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_have_three_roles_and_true_flops(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    model, x = make(), torch.randn(*shape, requires_grad=True)
    found = sites(model, x)
    assert [str(s.role) for s in found] == ["fprop", "dgrad", "wgrad"]
    assert {str(s.op) for s in found} == {"conv"}
    # Each weight element meets each image once per position of the kernel.
    positions = x[0, 0].numel() if model.transposed else model(x)[0, 0].numel()
    flops = 2 * shape[0] * positions * model.weight.numel()
    assert [s.flops for s in found] == [flops] * 3


@pytest.mark.parametrize(
    ("name", "dims"),
    [("1d", (0, 2)), ("2d", (0, 2, 3)), ("3d", (0, 2, 3, 4)), ("grouped", (0, 2, 3))],
)
def test_blocks_run_along_channels_or_along_batch_and_pixels(
    name: str, dims: tuple[int, ...]
) -> None:
    make, shape = CONVOLUTIONS[name]
    found = sites(make(), torch.randn(*shape, requires_grad=True), policy="full")
    assert [s.dims for s in found] == [(1,), (1,), dims]


def test_what_stays_dense_says_why() -> None:
    make, shape = CONVOLUTIONS["depthwise"]
    fprop, dgrad, wgrad = sites(make(), torch.randn(*shape, requires_grad=True), policy="full")
    assert fprop.reason == dgrad.reason == "each group has 1 element(s), fewer than M = 4"
    assert wgrad.format == "2:4"
    make, shape = CONVOLUTIONS["transposed"]
    *_, wgrad = sites(make(), torch.randn(*shape, requires_grad=True), policy="full")
    assert "overlap under the 3x3 kernel window" in wgrad.reason


def test_batched_products_of_activations_are_matmuls_in_both_directions() -> None:
    class Product(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.baddbmm(torch.zeros(1), a @ b, b)

    a, b = (torch.randn(3, 8, 8, requires_grad=True) for _ in range(2))
    found = sites(Product(), a, b)
    assert summary(found) == [
        ("matmul", "fprop", (3, 8, 8, 8)),
        ("matmul", "fprop", (3, 8, 8, 8)),
        *[("matmul", "dgrad", (3, 8, 8, 8))] * 4,
    ]
    assert not any(s.guess for s in found)


def test_batched_product_with_a_weight_is_linear() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.bmm(x, self.w)

    found = sites(Experts(), torch.randn(3, 4, 8, requires_grad=True), policy="full")
    assert sorted((str(s.op), str(s.role), s.pruned and str(s.pruned)) for s in found) == [
        ("linear", "dgrad", "gradient"),
        ("linear", "fprop", "activation"),
        ("linear", "wgrad", "gradient"),
    ]


def test_symbolic_sizes_stay_symbolic_and_need_no_recompilation() -> None:
    model = nn.Linear(16, 8)
    compiled = torch.compile(model, backend="nm_sparse", dynamic=True)
    for tokens in (5, 9):
        compiled(torch.randn(tokens, 16)).sum().backward()
    fprop, wgrad = nmcompile.last_report().sites
    assert fprop.sizes[1].startswith("s")
    assert wgrad.sizes[3] == fprop.sizes[1]
    assert wgrad.format == "2:4"
    assert fprop.flops == 2 * 5 * 16 * 8  # the traced size


def test_inference_graphs_have_fprop_sites_with_weights() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 4, 1))
    with torch.no_grad():
        found = sites(model, torch.randn(3, 16), policy="full")
    assert [(str(s.op), str(s.role)) for s in found] == [("linear", "fprop"), ("conv", "fprop")]
    assert str(found[0].pruned) == "activation"


def test_buffers_are_weights() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("basis", torch.randn(16, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.basis

    (fprop, dgrad) = sites(Fixed(), torch.randn(4, 16, requires_grad=True))
    assert [str(k) for k in fprop.operands] == ["activation", "weight"]
    assert str(dgrad.role) == "dgrad"


class Positions(nn.Module):
    """A layer reads a table of embeddings; a low-rank update is a product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Parameter(torch.randn(12, 16)), nn.LayerNorm(16)
        self.layer, self.key = nn.Linear(16, 8, bias=False), nn.Linear(16, 8)
        self.up, self.down = (nn.Parameter(torch.randn(*s)) for s in ((8, 4), (4, 16)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight + self.up @ self.down
        return nn.functional.linear(x, weight) * self.key(self.norm(self.table))


def test_what_a_layer_computes_from_parameters_is_its_activation() -> None:
    found = sites(Positions(), torch.randn(12, 16), policy="full")
    key = [s for s in found if s.module == "key"]
    assert [(str(s.op), str(s.role), str(s.pruned)) for s in key] == [
        ("linear", "fprop", "activation"),
        ("linear", "dgrad", "gradient"),
        ("linear", "wgrad", "gradient"),
    ]
    assert [tuple(map(str, s.operands)) for s in key][2] == ("gradient", "activation")
    update = [s for s in found if (s.op, s.role) == ("matmul", "fprop")]
    assert [tuple(map(str, s.operands)) for s in update] == [("weight", "weight")]
    assert update[0].pruned is None
    assert sum(str(s.op) == "linear" for s in found) == 5


class ExpertsInALoop(nn.Module):
    """Each expert of the tokens that chose it: how many these are is data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, 16))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        result = x.new_zeros(len(x), 12)
        for expert in range(3):
            (rows,) = torch.where(ids == expert)
            y = nn.functional.linear(x[rows], self.weight[expert])
            result = result.index_add(0, rows, y)
        return result


def test_experts_in_a_loop_are_linear_layers_of_unknown_size() -> None:
    x, ids = torch.randn(20, 16, requires_grad=True), torch.randint(0, 3, (20,))
    half, h = ExpertsInALoop().bfloat16(), x.detach().bfloat16()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = nmcompile.explain(ExpertsInALoop(), x, ids)
        with pytest.warns(NMWarning, match="a size of it is data"):
            gpu = nmcompile.explain(half, h, ids, target="h100")
    roles = Counter(s.role for s in report.sites)
    assert roles == {"fprop": 3, "dgrad": 3, "wgrad": 3}
    assert {s.op for s in report.sites} == {"linear"}
    assert {s.flops for s in report.sites} == {None}
    assert all(s.pruned for s in report.sites)
    assert report.totals.unknown_sites == 9
    first = "9 of 9 products pruned; 9 of them have sizes that are data, whose FLOPs are not known"
    assert first in str(report)
    assert all(s.has(Code.UNKNOWN_SIZE) for s in gpu.sites)

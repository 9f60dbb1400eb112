"""What a generated kernel is launched with: its arguments, on results of the right shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.printer import parameters
from nmcompile.compressed import packing
from nmcompile.masks.formats import NMFormat
from tests.kernels.specs import all_specs, inputs_of, spec

EVERY = list(dict.fromkeys(all_specs()))
CONSTANTS = {"ROWS", "COLUMNS", "FIT", "ISA"}


class Recorded:
    """A kernel that notes how it was launched."""

    grid: Any = None
    given: dict[str, Any]

    def __getitem__(self, grid: Any) -> Any:
        self.grid = grid
        return lambda **given: setattr(self, "given", given)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    pytest.importorskip("triton")
    recorded = Recorded()
    monkeypatch.setattr(launch, "load", lambda spec: recorded)
    monkeypatch.setattr(launch, "_capability", lambda: 90)
    return recorded


@pytest.mark.parametrize("kind", EVERY, ids=lambda s: f"{s.name}-{s.layout}")
def test_a_kernel_gets_the_arguments_that_are_printed(kind: KernelSpec, kernel: Recorded) -> None:
    inputs, seed = inputs_of(kind, 40, 72), torch.tensor([3])
    results = launch.run(kind, inputs, seed, list(range(len(kind.dims))))
    assert set(kernel.given) == {*parameters(kind), *CONSTANTS, "num_warps"}
    assert [kernel.given[name] for name in launch.result_names(kind)] == results
    assert [kernel.given[i.name] for i in kind.inputs] == inputs
    assert (kernel.given["R"], kernel.given["C"]) == (40, 72)
    streams = [kernel.given[name] for name in parameters(kind) if name.startswith("stream")]
    assert streams == (list(range(len(kind.dims))) if kind.method == "mvue" else [])
    assert (kernel.given.get("seed") is seed) == (kind.method == "mvue")


@pytest.mark.parametrize("kind", EVERY, ids=lambda s: f"{s.name}-{s.layout}")
def test_results_are_packed_as_the_oracle_packs_them(kind: KernelSpec) -> None:
    x = torch.randn(40, 72).half()
    form, layout = NMFormat(kind.n, kind.m), kind.layout
    packed = [packing.compress(x, None, 0, form, d, "mse", layout) for d in kind.dims]
    shapes = launch.result_shapes(kind, 40, 72)
    assert shapes[: len(packed)] == [p.shape for p in packed]
    assert shapes[len(packed) :] == [(40, 72)] * kind.keep_dense
    assert len(shapes) == len(launch.result_names(kind))


def test_rows_may_lie_apart(kernel: Recorded) -> None:
    kind = spec("silu_mul_bias")
    gate, up, bias = inputs_of(kind, 40, 144)
    launch.run(kind, [gate[:, :72], up[:, 72:], bias[:72]], None, [0])
    strides = {name: kernel.given[name] for name in kernel.given if name.endswith("_stride")}
    assert strides == {"gate_stride": 144, "up_stride": 144, "dense_stride": 72}


def test_the_first_whole_operand_tells_the_shape() -> None:
    kind = spec("scale_rows")
    x, row, scale = inputs_of(kind, 4, 8)
    turned = kind.model_copy(update={"inputs": kind.inputs[::-1]})
    assert launch.operand_shape(turned, [scale, row, x]) == (4, 8)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_an_empty_operand_launches_nothing(shape: tuple[int, int], kernel: Recorded) -> None:
    kind = spec("silu_mul_bias", (1, 0))
    results = launch.run(kind, inputs_of(kind, *shape), None, [0, 1])
    assert kernel.grid is None
    assert [r.numel() for r in results] == [0, 0, 0]


@pytest.mark.parametrize(
    ("columns", "fit"), [(256, "full"), (272, "aligned"), (264, "ragged"), (1, "ragged")]
)
def test_what_does_not_fit_is_launched_so(columns: int, fit: str, kernel: Recorded) -> None:
    launch.run(spec(), [torch.zeros(128, columns).half()], None, [0])
    assert kernel.given["FIT"] == fit


@pytest.mark.parametrize(
    ("dtype", "method", "generated"),
    [
        (torch.bfloat16, "mse", True),
        (torch.float16, "mvue", True),
        (torch.float32, "mse", False),
        (torch.bfloat16, "uniform", False),
        (torch.bfloat16, "transposable", False),
    ],
)
def test_for_which_operands_a_kernel_is_generated(
    dtype: torch.dtype, method: str, generated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_triton in (False, True):
        monkeypatch.setattr(launch, "has_triton", lambda has=has_triton: has)
        assert launch.is_generated(torch.zeros(1, dtype=dtype), method) is (
            generated and has_triton
        )

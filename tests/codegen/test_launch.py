"""What a generated kernel is launched with: its arguments, on results of the right shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from nmcompile.codegen import launch
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.codegen.printer import parameters
from nmcompile.compressed import cusparselt, packing
from nmcompile.compressed.layouts import Layout
from nmcompile.masks.formats import NMFormat
from tests.kernels.specs import UNPADDED, all_specs, inputs_of, spec

EVERY = list(dict.fromkeys(all_specs()))
CONSTANTS = {"ROWS", "COLUMNS", "FIT", "ISA"}


class Recorded:
    """A kernel that notes how it was launched, each time, and how often it was looked for."""

    grid: Any = None
    given: dict[str, Any]
    found = 0

    def __getitem__(self, grid: Any) -> Any:
        self.grid = grid
        return self.find

    def find(self, **given: Any) -> Any:
        """As Triton: the first launch, which returns what was compiled for it."""
        self.found += 1
        self.given = given
        compiled = Recorded()
        compiled.find = lambda *values: setattr(self, "again", values)  # type: ignore[method-assign]
        return compiled

    again: tuple[Any, ...] = ()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    pytest.importorskip("triton")
    recorded = Recorded()
    monkeypatch.setattr(launch, "load", lambda spec: recorded)
    monkeypatch.setattr(launch, "_capability", lambda *_: 90)
    launch._prepare.cache_clear()
    yield recorded
    launch._prepare.cache_clear()


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
def test_the_second_launch_is_that_of_what_was_compiled(kind: KernelSpec, kernel: Recorded) -> None:
    streams = list(range(7, 7 + len(kind.dims)))
    for number in range(3):
        inputs, seed = inputs_of(kind, 40, 72, number), torch.tensor([number])
        results = launch.run(kind, inputs, seed, streams)
    assert kernel.found == 1
    given = dict(
        zip([*parameters(kind), "ROWS", "COLUMNS", "FIT", "ISA"], kernel.again, strict=True)
    )
    assert [given[name] for name in launch.result_names(kind)] == results
    assert [given[i.name] for i in kind.inputs] == inputs
    assert (given.get("seed") is seed) == (kind.method == "mvue")
    tensors = {*launch.result_names(kind), *(i.name for i in kind.inputs), "seed"}
    same = {k: v for k, v in kernel.given.items() if k not in {*tensors, "num_warps"}}
    assert {k: v for k, v in given.items() if k not in tensors} == same


def test_what_triton_compiles_anew_is_looked_for_anew(kernel: Recorded) -> None:
    kind, x = spec("copy", (1, 0), "mvue"), torch.zeros(64, 256).half()
    seeds = torch.zeros(4, dtype=torch.int64)
    launch.run(kind, [x], seeds[:1], [0, 1])
    assert kernel.given["FIT"] == "aligned"
    for number, (values, seed, streams) in enumerate(
        [
            (x, seeds[1:2], [0, 1]),  # not at a multiple of 16 bytes
            (x, seeds[:1], [0, 2**31]),  # not 32 bits
            (torch.zeros(128, 256).half(), seeds[:1], [0, 1]),
            (torch.zeros(64, 512).half()[:, :256], seeds[:1], [0, 1]),
            (torch.zeros(64 * 256 + 4).half()[4:].view(64, 256), seeds[:1], [0, 1]),
        ]
    ):
        for _ in range(2):
            launch.run(kind, [values], seed, streams)
        assert kernel.found == number + 2
    assert kernel.given["FIT"] == "ragged"


def test_a_kernel_runs_where_its_tensors_are(
    kernel: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on the current device, whatever the tensors are on."""
    entered = []

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        entered.append(device)
        assert kernel.found == 0
        yield
        assert kernel.found == 1

    monkeypatch.setattr(launch, "on_device", on_device)
    launch.run(spec(), [torch.zeros(64, 64).half()], None, [0])
    assert entered == [torch.device("cpu")]


def test_the_current_device_is_changed_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []

    @contextmanager
    def device(chosen: Any) -> Iterator[None]:
        entered.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for name in ("cpu", "cuda:0", "cuda:1"):
        with launch.on_device(torch.device(name)):
            pass
    assert entered == [torch.device("cuda:1")]


def test_a_kernel_is_made_for_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    launch._capability.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (8, d.index))
    for index in (0, 6):
        device = torch.device("cuda", index)
        values, _, _ = launch.constants(spec(), 64, 64, [64], [0], device)
        assert values["ISA"] == 80 + index
    launch._capability.cache_clear()


@pytest.mark.parametrize("kind", EVERY, ids=lambda s: f"{s.name}-{s.layout}")
def test_results_are_packed_as_the_oracle_packs_them(kind: KernelSpec) -> None:
    x = torch.randn(40, 72).half()
    form, layout = NMFormat(kind.n, kind.m), kind.layout
    packed = [packing.compress(x, None, 0, form, d, "mse", layout) for d in kind.dims]
    packed += packed[:1] * len(kind.alike)
    shapes = launch.result_shapes(kind, 40, 72)
    assert shapes[: len(packed)] == [p.shape for p in packed]
    assert shapes[len(packed) :] == [(40, 72)] * kind.dense_results
    assert len(shapes) == len(launch.result_names(kind))


def test_rows_may_lie_apart(kernel: Recorded) -> None:
    kind = spec("silu_mul_bias")
    gate, up, bias = inputs_of(kind, 40, 144)
    launch.run(kind, [gate[:, :72], up[:, 72:], bias[:72]], None, [0])
    strides = {name: kernel.given[name] for name in kernel.given if name.endswith("_stride")}
    assert strides == {"gate_stride": 144, "up_stride": 144}


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


def test_sizes_follow_from_a_packed_input_alone() -> None:
    for layout in [layout for layout in Layout if not layout.opaque]:
        kind = spec("packed_alone", dims=(), layout=layout)
        assert launch.operand_shape(kind, inputs_of(kind, *UNPADDED)) == UNPADDED


def test_what_the_library_packed_itself_is_not_read(
    kernel: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = spec("packed_alone", dims=())
    inputs = inputs_of(kind, *UNPADDED)
    launch.run(kind, inputs, None, [])
    assert (kernel.given["R"], kernel.given["C"]) == UNPADDED
    monkeypatch.setattr(cusparselt, "reads", lambda *_: False)
    with pytest.raises(RuntimeError, match="cannot unpack"):
        launch.run(kind, inputs, None, [])

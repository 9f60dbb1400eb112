"""Plans that are kept: the library is imitated behind its C interface, and multiplies for real."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nmcompile import _cuda
from nmcompile.compressed import packing, plans
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.execution import targets
from nmcompile.ops.schemas import Mm

LAYOUT = Layout.CUSPARSELT_SM90
ROWS, COLUMNS, K = 64, 24, 128
TYPES = {2: torch.float16, 14: torch.bfloat16}


class Imitation:
    """cuSPARSELt on the CPU: what it is told is kept by the addresses that it is given."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.told: dict[int, Any] = {}
        self.symbols = SimpleNamespace()
        for name, arguments in plans.FUNCTIONS.items():
            function = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._counted(name))
            setattr(self.symbols, f"cusparseLt{name}", function)

    def _counted(self, name: str) -> Any:
        def run(*given: Any) -> int:
            self.calls[name] += 1
            return getattr(self, name, lambda *_: None)(*given) or 0

        return run

    def DenseDescriptorInit(
        self, handle: int, out: int, rows: int, columns: int, pitch: int, _: int, kind: int, o: int
    ) -> None:
        assert out % 16 == 0
        self.told[out] = rows, columns, pitch, TYPES[kind], o

    def StructuredDescriptorInit(self, *given: Any) -> None:
        assert given[-1] == 0  # half of them are kept
        self.DenseDescriptorInit(*given[:-1])

    def MatmulDescriptorInit(
        self, handle: int, out: int, a_op: int, b_op: int, a: int, b: int, c: int, d: int, kind: int
    ) -> None:
        assert (a_op, c, kind) == (0, d, 2)
        self.told[out] = {"b transposed": b_op == 1, "a": a, "b": b, "d": d, "bias": None}

    def MatmulDescSetAttribute(
        self, handle: int, multiply: int, attribute: int, value: int, size: int
    ) -> None:
        assert (attribute, size) == (8, 8)
        self.told[multiply]["bias"] = ctypes.c_void_p.from_address(value).value

    def MatmulAlgSetAttribute(
        self, handle: int, selected: int, attribute: int, value: int, size: int
    ) -> None:
        assert (attribute, size) == (0, 4)
        self.told[selected] = ctypes.c_int.from_address(value).value

    def MatmulPlanInit(self, handle: int, out: int, multiply: int, selected: int) -> int:
        self.told[out] = multiply
        return 3 if self.told[selected] == 99 else 0  # there is no such algorithm

    def MatmulGetWorkspace(self, handle: int, plan: int, out: int) -> None:
        ctypes.c_size_t.from_address(out).value = 512

    def Matmul(self, handle: int, plan: int, *given: Any) -> None:
        alpha, a, b, beta, _, out, workspace, stream, streams = given
        assert [ctypes.c_float.from_address(x).value for x in (alpha, beta)] == [1, 0]
        assert workspace
        assert (ctypes.c_void_p.from_address(stream).value, streams) == (None, 1)
        how = self.told[self.told[plan]]
        (rows, k, _, dtype, _), second, (_, columns, pitch, _, order) = (
            self.told[how[x]] for x in ("a", "b", "d")
        )
        packed = _at(a, (rows, k * 9 // 16), dtype)
        dense = _at(b, second[:2], dtype)
        dense = dense.t() if how["b transposed"] else dense
        assert (dense.shape, second[2]) == ((k, columns), second[1])
        result = packing.unpack(packed, rows, k, LAYOUT)
        bias = None if how["bias"] is None else _at(how["bias"], (rows, 1), dtype)
        product = result @ dense if bias is None else torch.addmm(bias, result, dense)
        by_columns = order == 1
        assert pitch == (rows if by_columns else columns)
        shape = (columns, rows) if by_columns else (rows, columns)
        _at(out, shape, dtype).copy_(product.t() if by_columns else product)


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def by_pytorch(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    algorithm: int = 0,
) -> Tensor:
    """What the library's call gives."""
    product = Mm(packed, dense, packed.shape[0], str(LAYOUT), bias=bias).run()
    return product.t().contiguous() if transpose_result else product


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Imitation:
    """An imitation, which plans are asked of in a thread that has none yet."""
    imitation = Imitation()
    found = plans.Library(imitation.symbols)
    monkeypatch.setattr(plans, "library", lambda: found)
    monkeypatch.setattr(plans, "asked", lambda: True)
    monkeypatch.setattr(plans, "_version", lambda: 800)
    monkeypatch.setattr(plans, "_found", {})
    monkeypatch.setattr(plans, "_of_thread", plans._OfThread())
    monkeypatch.setattr(_cuda, "cusparselt_mm", by_pytorch)
    return imitation


def operands(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    packed = packing.random_packed(ROWS, K, LAYOUT, lambda shape: torch.randn(shape, dtype=dtype))
    return packed, torch.randn(K, COLUMNS, dtype=dtype), torch.randn(ROWS, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_planned_once_and_reads_the_operands_of_each_call(
    library: Imitation, dtype: torch.dtype
) -> None:
    products = list(itertools.product((False, True), repeat=3))
    for by_columns, transposed, biased in products * 3:
        packed, dense, bias = operands(dtype)
        dense = dense.t().contiguous().t() if by_columns else dense
        given = packed, dense, bias if biased else None, transposed, 1
        result = plans.kept_mm(*given)
        assert torch.equal(result, by_pytorch(*given))
        assert result.is_contiguous()
    assert library.calls["Matmul"] == 3 * len(products)
    assert library.calls["MatmulPlanInit"] == len(products)
    assert library.calls["Init"] == 1


def test_the_library_is_used_where_it_agrees_with_pytorch(library: Imitation) -> None:
    packed, dense, bias = operands()
    assert torch.equal(plans.mm(packed, dense, bias), by_pytorch(packed, dense, bias))
    tried = library.calls["Matmul"] - 1
    assert tried == 16
    plans.mm(packed, dense, bias, True)
    assert library.calls["Matmul"] == tried + 2  # tried once


@pytest.mark.parametrize("fault", ["wrong", "refuses"])
def test_where_it_does_not_pytorch_multiplies_and_that_is_said(
    library: Imitation, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Another bias than the first would not be read by a plan that copied where it was."""
    if fault == "wrong":
        first = Imitation.MatmulDescSetAttribute

        def once(self: Imitation, handle: int, multiply: int, *value: int) -> None:
            if self.told[multiply]["bias"] is None:
                first(self, handle, multiply, *value)

        monkeypatch.setattr(Imitation, "MatmulDescSetAttribute", once)
        why = "are not those of PyTorch's call"
    else:
        monkeypatch.setattr(Imitation, "MatmulPlanInit", lambda *_: 10)
        why = "cusparseLtMatmulPlanInit returned status 10"
    given = operands()
    with pytest.warns(
        NMWarning,
        match=f"plans of cuSPARSELt are made anew .* on cpu, .* NMCOMPILE_KEEP_PLANS=0 .*: .*{why}",
    ):
        assert torch.equal(plans.mm(*given), by_pytorch(*given))
    plans.mm(*given)  # said once


@pytest.mark.parametrize(("name", "value"), [("asked", False), ("_version", None)])
def test_nobody_is_asked_unless_plans_are_to_be_kept_and_there_is_a_library(
    library: Imitation, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(plans, name, lambda: value)
    given = operands()
    assert torch.equal(plans.mm(*given), by_pytorch(*given))
    assert not library.calls


def test_an_error_says_which_versions_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_version", lambda: None)
    with pytest.raises(RuntimeError, match="cuSPARSELt is not there: known are 701 to 1000"):
        plans.library.__wrapped__()


def test_a_thread_has_plans_of_its_own(library: Imitation) -> None:
    given = operands()
    plans.kept_mm(*given)
    thread = threading.Thread(target=lambda: [plans.kept_mm(*given) for _ in range(2)])
    thread.start()
    thread.join()
    assert library.calls["MatmulPlanInit"] == library.calls["Init"] == 2
    assert library.calls["MatmulPlanDestroy"] == 1  # those of the thread went with it
    assert library.calls["MatDescriptorDestroy"] == 3


def test_an_error_names_the_function(library: Imitation) -> None:
    with pytest.raises(RuntimeError, match="cusparseLtMatmulPlanInit returned status 3"):
        plans.kept_mm(*operands(), algorithm=99)


def test_decisions_know_of_it(library: Imitation, monkeypatch: pytest.MonkeyPatch) -> None:
    targets._known.cache_clear()
    try:
        kept = targets.named("h100").figures
        assert kept is not None
        assert kept.setup == targets.KEPT_PLAN
        before = targets.fingerprint()
        monkeypatch.setattr(plans, "asked", lambda: False)
        targets._known.cache_clear()
        anew = targets.named("h100").figures
        assert anew is not None
        assert anew.setup.value > 10 * plans.CALL
        assert targets.fingerprint() != before
    finally:
        targets._known.cache_clear()

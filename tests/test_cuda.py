"""PyTorch's sparse libraries and its clock on a GPU, imitated on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from nmcompile import _cuda, _torch


def test_inductor_calls_what_stands_for_an_operator_with_the_strides_of_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A product of the library, imitated on the CPU; its operand is the transpose of a row."""
    library = torch.library.Library("nm_test", "DEF")
    exact = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    arguments = "bool transpose_result, int alg_id) -> Tensor"
    library.define(f"mm(Tensor p, Tensor d, Tensor? b, {arguments}", tags=exact)
    library.define(f"called(Tensor p, Tensor d, Tensor? b, *, {arguments}")
    seen: list[Any] = []

    def called(p: Any, d: Any, b: Any, *, transpose_result: bool, alg_id: int) -> Any:
        seen.append((d.stride(), b, transpose_result, alg_id))
        return p @ d

    for name in ("mm", "called"):
        fake = lambda p, d, b, transpose_result, alg_id: p @ d  # noqa: E731
        torch.library.register_fake(f"nm_test::{name}", fake, lib=library)
    library.impl("called", called, "CPU")
    stand_in = torch.ops.nm_test.called
    monkeypatch.setattr(torch.ops.aten, "_cslt_sparse_mm", stand_in)
    _cuda.call_cusparselt_for(torch.ops.nm_test.mm.default)
    _cuda.call_cusparselt_for(torch.ops.nm_test.mm.default)  # once is enough

    class Strides(CustomGraphPass):  # type: ignore[misc]
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.find_nodes(op="call_function", target=torch.ops.nm_test.mm.default):
                value = node.args[1].meta["val"]
                node.args[1].meta["val"] = torch.empty_strided(
                    value.shape, (96, 1), dtype=value.dtype, device="meta"
                )
                _torch.keep_strides(node)
                node.args[1].meta["val"] = value

        def uuid(self) -> None:
            return None

    def f(p: Any, x: Any) -> Any:
        return torch.ops.nm_test.mm(p, x.sin(), None, True, 3)

    p, x = torch.randn(8, 64), torch.randn(64, 64)
    with _torch.inductor_config.patch(post_grad_custom_pre_pass=Strides()):
        result = torch.compile(f)(p, x)
    assert seen == [((96, 1), None, True, 3)]
    torch.testing.assert_close(result, p @ x.sin())


def test_the_search_of_the_library_names_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    library = SimpleNamespace(mm_search=lambda *given: asked.append(given) or (20, -1, 1, 21))
    monkeypatch.setitem(sys.modules, "torch._C._cusparselt", library)
    packed, dense = torch.zeros(64, 36), torch.zeros(64, 8)
    assert _cuda.cusparselt_search(packed, dense, None, True) == 20
    assert asked == [(packed, dense, None, None, None, True)]


def test_seconds_are_the_median_of_the_device_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, waits, runs = iter([3.0, 9.0, 5.0]), [], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None: ...

        def synchronize(self) -> None: ...

        def elapsed_time(self, _: Event) -> float:
            return next(taken)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", waits.append)
    assert _cuda.device_seconds(lambda: runs.append(1), 3) == pytest.approx(5e-3)
    assert (len(waits), len(runs)) == (3, 4)

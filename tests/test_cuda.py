"""PyTorch's sparse libraries and its clock on a GPU, imitated on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from nmcompile import _cuda, _torch

seen: list[Any] = []


def multiply(p: Any, d: Any, b: Any = None, transpose: bool = False, number: int = 0) -> Any:
    """What Inductor is told to call."""
    seen.append((d.stride(), b if b is None else b.shape, transpose, number))
    return p @ d if b is None else p @ d + b


@pytest.mark.parametrize("bias", [None, torch.ones(64)])
def test_inductor_calls_a_function_for_an_operator_with_the_strides_of_the_graph(
    bias: torch.Tensor | None,
) -> None:
    """A product of the library, imitated on the CPU; its operand is the transpose of a row."""
    library = torch.library.Library("nm_test", "FRAGMENT")
    name = f"mm_{bias is None}".lower()
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    library.define(f"{name}(Tensor p, Tensor d, Tensor? b, bool t, int n) -> Tensor", tags=tags)
    torch.library.register_fake(
        f"nm_test::{name}", lambda p, d, b, t, n: p @ d, lib=library, allow_override=True
    )
    operator = getattr(torch.ops.nm_test, name).default
    for _ in range(2):  # once is enough
        _cuda.call_for(operator, __name__, "multiply")

    class Strides(CustomGraphPass):  # type: ignore[misc]
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.find_nodes(op="call_function", target=operator):
                value = node.args[1].meta["val"]
                node.args[1].meta["val"] = torch.empty_strided(
                    value.shape, (96, 1), dtype=value.dtype, device="meta"
                )
                _torch.keep_strides(node)
                node.args[1].meta["val"] = value

        def uuid(self) -> None:
            return None

    def f(p: Any, x: Any) -> Any:
        return operator(p, x.sin(), bias, True, 3).cos()

    p, x = torch.randn(8, 64), torch.randn(64, 64)
    seen.clear()
    with _torch.inductor_config.patch(post_grad_custom_pre_pass=Strides()):
        result = torch.compile(f)(p, x)
    assert seen == [((96, 1), None if bias is None else bias.shape, True, 3)]
    expected = p @ x.sin()
    torch.testing.assert_close(result, (expected if bias is None else expected + bias).cos())


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

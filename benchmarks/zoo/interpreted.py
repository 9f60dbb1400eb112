"""Run the backend without code generation: graphs are interpreted, operator by operator.

Capture, passes, partitioner, masks and reports are those of the backend. The C++ compiler, which
costs most of the time of a small model, is left out, and with it all that Inductor generates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import fx
from torch._functorch import config as functorch_config

from nmcompile import _torch


@contextmanager
def interpreted() -> Iterator[None]:
    """While it is active, backend ``nm_sparse`` interprets what it compiles."""
    compile_fx = _torch.compile_fx

    def without_code(
        gm: fx.GraphModule, inputs: Any, patches: dict[str, Any], inner: Any = _interpret
    ) -> Any:
        return compile_fx(gm, inputs, patches, inner=inner)

    uncached = functorch_config.patch(enable_autograd_cache=False)
    with mock.patch.object(_torch, "compile_fx", without_code), uncached:
        yield


def _interpret(gm: fx.GraphModule, *_: Any, **__: Any) -> Any:
    def run(args: list[Any]) -> Any:
        return fx.Interpreter(gm).boxed_run(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run

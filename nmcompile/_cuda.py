"""Private APIs of PyTorch's sparse libraries and of its clock on a GPU; the others: ``_torch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nmcompile._torch import private


def call_cusparselt_for(operator: Any) -> None:
    """Let Inductor call cuSPARSELt's product itself wherever a graph calls ``operator``.

    Its arguments are those of ``cusparselt_mm``. A call through Python costs the host five times
    as long.
    """
    module = "torch._inductor.lowering"
    if operator in private(module, "lowerings"):
        return
    target = torch.ops.aten._cslt_sparse_mm.default
    call = private(module, "fallback_handler")(target, add_to_fallback_set=False)

    def lower(
        packed: Any,
        dense: Any,
        bias: Any = None,
        transpose_result: bool = False,
        algorithm: int = 0,
    ) -> Any:
        return call(packed, dense, bias, transpose_result=transpose_result, alg_id=algorithm)

    private(module, "register_lowering")(operator, type_promotion_kind=None)(lower)


def cusparselt_mm(
    packed: torch.Tensor,
    dense: torch.Tensor,
    bias: torch.Tensor | None = None,
    transpose_result: bool = False,
    algorithm: int = 0,
) -> torch.Tensor:
    """cuSPARSELt's product of an operand that it packed, or that is packed as it does.

    No alpha: it would wait for the device.
    """
    run = private("torch", "_cslt_sparse_mm")
    result: torch.Tensor = run(
        packed, dense, bias, transpose_result=transpose_result, alg_id=algorithm
    )
    return result


def cusparselt_search(
    packed: torch.Tensor, dense: torch.Tensor, bias: torch.Tensor | None, transpose_result: bool
) -> int:
    """The number of the algorithm that cuSPARSELt finds fastest, by running each."""
    search = private("torch._C._cusparselt", "mm_search")
    number, *_ = search(packed, dense, bias, None, None, transpose_result)
    return int(number)


def cusparselt_compress(dense: torch.Tensor) -> torch.Tensor:
    """A dense 2:4 operand as cuSPARSELt itself packs it."""
    result: torch.Tensor = private("torch", "_cslt_compress")(dense)
    return result


def cutlass_sparse_mm(
    values: torch.Tensor, metadata: torch.Tensor, dense: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """CUTLASS's product of a packed operand; ``bias`` is one number for each of its rows."""
    result: torch.Tensor
    if bias is None:
        result = private("torch", "_sparse_semi_structured_mm")(values, metadata, dense)
    else:
        result = private("torch", "_sparse_semi_structured_addmm")(bias, values, metadata, dense)
    return result


def device_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of the CUDA device for ``run``, after one more to warm up.

    The launches are queued behind a wait of about a millisecond: no time of the host counts.
    """
    run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        private("torch.cuda", "_sleep")(2_000_000)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2] * 1e-3

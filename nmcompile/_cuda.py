"""Private APIs of PyTorch's sparse libraries and of its clock on a GPU; the others: ``_torch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nmcompile._torch import private


def call_for(operator: Any, module: str, function: str) -> None:
    """Let Inductor call ``module.function`` itself wherever a graph calls ``operator``.

    With the same arguments, the tensors first. Through the operator the host takes as long again.
    """
    lowering = "torch._inductor.lowering"
    if operator in private(lowering, "lowerings"):
        return
    ir = "torch._inductor.ir"
    allocated: Any = private(ir, "ExternKernelAlloc")
    box, layout_of = private(ir, "TensorBox"), private(ir, "FixedLayout")
    realize = private(ir, "ExternKernel").realize_input
    virtualized = private("torch._inductor.virtualized", "V")
    by_operator = private(lowering, "fallback_handler")(operator, add_to_fallback_set=False)
    name = f"{module}_{function}".replace(".", "_")

    class Direct(allocated):  # type: ignore[misc]
        def codegen(self, wrapper: Any) -> None:
            wrapper.add_import_once(f"from {module} import {function} as {name}")
            super().codegen(wrapper)

    def lower(*args: Any) -> Any:
        graph = virtualized.graph
        if graph.cpp_wrapper:
            return by_operator(*args)
        value = graph.current_node.meta["val"]
        tensors = [x for x in args if isinstance(x, box)]
        layout = layout_of(value.device, value.dtype, [*value.shape], [*value.stride()])
        inputs = [realize(x) for x in tensors]
        return box.create(Direct(layout, inputs, args[len(tensors) :], None, name))

    private(lowering, "register_lowering")(operator, type_promotion_kind=None)(lower)


def stream_on(device: int) -> Callable[[int], int]:
    """What gives the address of PyTorch's current stream of a GPU; 0 where it is negative."""
    if device < 0:
        return lambda _: 0
    stream: Callable[[int], int] = private("torch._C", "_cuda_getCurrentRawStream")
    return stream


def empty_on(device: int) -> Callable[..., torch.Tensor]:
    """``(size, stride, dtype)``: memory of the current GPU, where negative of the CPU.

    A third of the time of ``torch.empty``.
    """
    kind = "cuda" if device >= 0 else "cpu"
    empty: Callable[..., torch.Tensor] = private(
        "torch._C._dynamo.guards", f"_empty_strided_{kind}"
    )
    return empty


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

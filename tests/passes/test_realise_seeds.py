"""One random number for all masks of a graph, and the masks that it gave before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_fw_bw_and_get_code

from nmcompile import _torch
from nmcompile.passes.plan import Kernels
from nmcompile.passes.realise_seeds import realise_seeds, seeds
from tests.passes.fused import compress, half, nm


def test_the_seeds_that_masks_read_are_found() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(x: Any, given: Any) -> Any:
        seed = torch.randint(-9, 9, [1])
        pruned = nm.prune(x, seed, 1, 2, 4, [1], "mvue")
        return compress(x, (1, 0), seed), pruned, compress(x, (1,), given), compress(x)

    gm = make_fx(f, tracing_mode="fake")(half(8, 32), torch.ones(1, dtype=torch.int64))
    drawn = [node.name for node in seeds(gm.graph)]
    assert drawn == ["randint", "randint"]  # neither the one that is given nor none
    realise_seeds(Kernels(gm.graph))
    marked = [n.name for n in gm.graph.nodes if "inductor_realize_to_strides" in n.meta]
    assert marked == ["randint"]


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(m for _ in range(3) for m in (nn.Linear(32, 32), nn.ReLU())))


def step(backend: str = "nm_sparse") -> tuple[list[str], list[torch.Tensor]]:
    torch.manual_seed(0)
    torch.compiler.reset()
    net, x = Net(), torch.randn(16, 32)
    compiled = torch.compile(net, backend=backend, options={"policy": "full"})
    torch.manual_seed(1)
    _, code = run_fw_bw_and_get_code(lambda: compiled(x).square().sum())
    return code, [p.grad for p in net.parameters()]


@pytest.mark.slow
def test_the_number_is_drawn_once_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    code, gradients = step()
    assert sum(text.count("randint64_cpu(") for text in code) == 1
    monkeypatch.setattr(_torch, "compute_once", lambda node: None)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    with _torch.inductor_config.patch(force_disable_caches=True):
        _, before = step()
    assert all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))

"""One random number for all masks of a graph, which Inductor draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._inductor import inductor_prims as prims
from torch._inductor.utils import run_fw_bw_and_get_code

from nmcompile.passes.plan import Kernels
from nmcompile.passes.realise_seeds import realise_seeds, seeds
from tests.passes.fused import compress, half, nm

aten = torch.ops.aten


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


def drawn(count: int, index: int) -> fx.GraphModule:
    """A graph as Inductor makes it of ``randint``; what reads the seed is pruned."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = half(8, 32)
    numbers = graph.call_function(prims.seeds, (count, torch.device("cpu")))
    numbers.meta["val"] = torch.empty(count, dtype=torch.int64)
    number = graph.call_function(prims.lookup_seed, (numbers, index))
    number.meta["val"] = torch.empty((), dtype=torch.int64)
    bounds = (-(2**63), 2**63 - 1, [1])
    seed = graph.call_function(prims.randint, (*bounds, number))
    seed.meta["val"] = torch.empty(1, dtype=torch.int64)
    arguments = (x, seed, 1, 2, 4, [1], "mvue")
    pruned = graph.call_function(nm.prune.default, arguments)
    pruned.meta["val"] = half(8, 32)
    graph.output(pruned)
    return fx.GraphModule({}, graph)


def test_what_is_computed_from_a_seed_is_in_memory_once() -> None:
    gm = drawn(1, 0)
    (seed,) = gm.graph.find_nodes(op="call_function", target=prims.randint)
    (pruned,) = seed.users
    with gm.graph.inserting_after(seed):
        own = gm.graph.call_function(nm.rank_seed.default, (seed, 1))
    own.meta["val"] = seed.meta["val"]
    pruned.update_arg(1, own)
    realise_seeds(Kernels(gm.graph))
    assert [n.name for n in gm.graph.nodes if "inductor_realize_to_strides" in n.meta] == [own.name]
    assert [n.target for n in own.all_input_nodes] == [aten.slice.Tensor]


def test_a_seed_is_a_view_of_inductors() -> None:
    gm = drawn(3, 2)
    realise_seeds(Kernels(gm.graph))
    targets = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert targets == [prims.seeds, aten.slice.Tensor, nm.prune.default]
    (view,) = gm.graph.find_nodes(op="call_function", target=aten.slice.Tensor)
    assert view.args[1:] == (0, 2, 3)
    assert not any("inductor_realize_to_strides" in n.meta for n in gm.graph.nodes)


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
def test_the_seed_is_one_of_inductors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of PyTorch's generator a graph, and no kernel that makes a number of it."""
    code, gradients = step()
    assert "".join(code).count("aten.randint.low_out(") == 1
    assert not any("randint64_cpu(" in text for text in code)
    _, again = step()
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))

"""One read of a tensor writes everything that is pruned from it, and the masks stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor.utils import run_fw_bw_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.ops.schemas import Prune, PruneEach
from nmcompile.passes import pipeline
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run
from nmcompile.passes.share_pruned import share_pruned

UNSHARED = tuple(p for p in pipeline.POST_GRAD if p.run is not share_pruned)


def pruned_twice(x: Tensor, view: Any, **changed: Any) -> tuple[fx.GraphModule, Any]:
    """A graph that prunes ``x`` and ``view(x)`` along their last dimensions, after the pass.

    ``changed`` are fields of the second call. Beside it what the graph gives without the pass.
    """

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        seed = torch.ones(1, dtype=torch.int64)
        one = Prune(x, seed, 3, 2, 4, [x.dim() - 1], "mvue")
        two = {**vars(one), "x": view(x), "stream": 4, **changed}
        return one.run(), Prune(**two).run()

    gm = make_fx(f, tracing_mode="fake")(x)
    run([pipeline.Pass(share_pruned)], Kernels(gm.graph), "graph")
    gm.recompile()
    return gm, f(x)


def reads(gm: fx.GraphModule) -> int:
    return len(Prune.nodes(gm.graph)) + len(PruneEach.nodes(gm.graph))


@pytest.mark.parametrize(
    ("shape", "view", "dims"),
    [
        ((16, 24), lambda x: x.t(), [1]),
        ((16, 24), lambda x: x, [0]),
        ((16, 24), lambda x: x, [0, 1]),
        ((16, 24), lambda x: x.permute(1, 0).transpose(0, 1).t(), [1]),
        ((4, 12, 5, 7), lambda x: x, [0, 2, 3]),
        ((4, 6, 8), lambda x: x.permute(2, 0, 1), [1, 2]),
    ],
)
@pytest.mark.parametrize("strided", [False, True])
def test_one_read_gives_the_masks_of_single_calls(
    shape: tuple[int, ...], view: Any, dims: list[int], strided: bool
) -> None:
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] if strided else torch.randn(shape)
    gm, expected = pruned_twice(x, view, dims=dims)
    assert reads(gm) == 1
    for found, single in zip(gm(x), expected, strict=True):
        assert torch.equal(found, single)
        assert found.stride() == single.stride()


@pytest.mark.parametrize("changed", [{"n": 1}, {"n": 1, "m": 2}, {"method": "uniform"}])
def test_another_kind_of_mask_is_another_read(changed: dict[str, Any]) -> None:
    assert reads(pruned_twice(torch.randn(16, 24), lambda x: x.t(), dims=[1], **changed)[0]) == 2


def test_equal_calls_are_left_to_inductor() -> None:
    assert reads(pruned_twice(torch.randn(16, 24), lambda x: x.t(), dims=[0], stream=3)[0]) == 2


def test_a_copy_of_what_overlaps_lies_otherwise_and_is_left_alone() -> None:
    x = torch.randn(1, 24).expand(16, 24)
    gm, expected = pruned_twice(x, lambda x: x.t(), dims=[1])
    assert reads(gm) == 2
    assert all(torch.equal(*pair) for pair in zip(gm(x), expected, strict=True))


def test_where_kernels_are_generated_each_call_is_one() -> None:
    def f(x: Tensor) -> Any:
        return [torch.ops.nm.prune(x, None, 0, 2, 4, [d], "mse") for d in (0, 1)]

    gm = make_fx(f, tracing_mode="fake")(torch.randn(8, 8))
    share_pruned(Kernels(gm.graph, ("cuda", "cpu")))
    assert len(Prune.nodes(gm.graph)) == 2
    share_pruned(Kernels(gm.graph, ("cuda",)))
    assert len(PruneEach.nodes(gm.graph)) == 1


def test_a_compiled_step_draws_the_masks_of_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[list[Tensor], int]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        x = torch.randn(12, 16, requires_grad=True)
        with torch._inductor.config.patch(force_disable_caches=True):
            compiled = torch.compile(model, backend="nm_sparse")
            _, code = run_fw_bw_and_get_code(lambda: compiled(x).square())
        gradients = [x.grad, *(p.grad for p in model.parameters())]
        return gradients, "".join(code).count("nm.prune_each.default(")

    merged, reads_of_both = step()
    monkeypatch.setattr(pipeline, "POST_GRAD", UNSHARED)
    single, none = step()
    assert (reads_of_both, none) == (2, 0)
    for one, other in zip(merged, single, strict=True):
        assert torch.equal(one, other)

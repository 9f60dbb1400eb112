"""What is pruned without random numbers lies as Inductor likes, and is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.ops.schemas import Prune, PruneInAnyLayout
from nmcompile.passes.free_layout import free_layout
from nmcompile.passes.plan import Kernels

SEED = torch.tensor([5])


def freed(x: Tensor, seed: Tensor | None, method: str) -> tuple[fx.GraphModule, int]:
    """A graph that prunes ``x``, after the pass, and how many of its calls became free."""

    def f(x: Tensor) -> Any:
        return Prune(x, seed, 0, 2, 4, [1], method).run().sin()

    gm = make_fx(f, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    free_layout(Kernels(gm.graph))
    gm.recompile()
    return gm, len(PruneInAnyLayout.nodes(gm.graph))


@pytest.mark.parametrize("method", ["mse", "transposable"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_result_is_the_same_in_any_order(method: str, memory: torch.memory_format) -> None:
    dims = [1, 0] if method == "transposable" else [1]
    x = torch.randint(-3, 3, (4, 12, 5, 6)).float()  # with ties
    expected = Prune(x, None, 0, 2, 4, dims, method).run()
    given = x.to(memory_format=memory)
    found = PruneInAnyLayout(given, None, 0, 2, 4, dims, method).run()
    assert torch.equal(found, expected)
    assert found.stride() == given.stride()


def test_only_calls_without_a_seed() -> None:
    x = torch.randn(4, 8)
    gm, free = freed(x, None, "mse")
    assert free == 1
    assert torch.equal(gm(x), Prune(x, None, 0, 2, 4, [1], "mse").run().sin())
    assert freed(x, SEED, "mvue")[1] == 0


def test_where_kernels_are_generated_they_are_made_for_given_strides() -> None:
    gm = make_fx(lambda x: Prune(x, None, 0, 2, 4, [1], "mse").run())(torch.randn(4, 8))
    free_layout(Kernels(gm.graph, ("cuda", "cpu")))
    assert not PruneInAnyLayout.nodes(gm.graph)


def test_a_convolution_reads_what_its_producer_wrote() -> None:
    """Channels-last on the CPU, although the images were traced as contiguous ones."""
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = torch.randn(2, 8, 12, 12)
    compiled = torch.compile(model, backend="nm_sparse", options={"policy": "activations"})
    y, code = run_and_get_code(compiled, x)
    text = "".join(code)
    assert text.count("prune_in_any_layout.default(") == 2
    assert "(1600, 1, 160, 16), 'torch.ops.nm.prune_in_any_layout" in text
    expected = x
    for layer in model:
        pruned = Prune(expected, None, 0, 2, 4, [1], "mse").run()
        expected = layer(pruned if isinstance(layer, nn.Conv2d) else expected)
    torch.testing.assert_close(y, expected)

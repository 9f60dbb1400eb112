"""``nm::observe``: who sees a product, and that it is not left out of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nmcompile.ops.observe import SAMPLES, Observe, ObservedSite, site_of

MM = ObservedSite("fc", "wgrad", 1, "gradient", "2:4", "mvue", (1,), 2, True, "aten.mm.default",
                  ([], [0]))  # fmt: skip


def call(site: ObservedSite = MM, meter: int = 0, result: Tensor | None = None) -> Observe:
    dense, beside = torch.randn(4, 8), torch.randn(8, 3)
    return Observe(torch.zeros(1), dense, dense / 2, [beside], result, meter, site.to_json())


def test_a_site_is_text_and_back() -> None:
    words = ([], [1], {"is": [1, 2]}, {"is": None}, {"is": True})
    for site in (MM, ObservedSite("fc", "wgrad", 0, "gradient", "1:2", "mse", (0, 2), words=words)):
        assert site_of(site.to_json()) == site
    assert (MM.form.n, MM.form.m) == (2, 4)


def test_only_the_open_sample_of_its_meter_sees_it() -> None:
    class Seen(list):  # type: ignore[type-arg]
        def __call__(self, made: Observe) -> None:
            self.append((made.site, torch.is_grad_enabled()))

    seen = Seen()
    SAMPLES[7] = seen
    for meter in (7, 8):
        call(meter=meter).run()
    assert seen == [(MM.to_json(), False)]
    del seen
    call(meter=7).run()
    assert 7 not in SAMPLES


def test_weight_gradients_of_a_product() -> None:
    made = call()
    dense, pruned = made.weight_gradients() or ()
    assert torch.equal(dense, made.dense @ made.beside[0])
    assert torch.equal(pruned, made.pruned @ made.beside[0])
    given = torch.ones(4, 3)
    _, pruned = call(result=given).weight_gradients() or ()
    assert pruned is given
    assert call(replace(MM, target="")).weight_gradients() is None


def test_weight_gradients_of_a_convolution() -> None:
    x, w, dy = torch.randn(2, 4, 5, 5), torch.randn(8, 4, 3, 3), torch.randn(2, 8, 3, 3)
    plain = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    words: Any = ([], [0], [1], *({"is": value} for value in plain))
    site = ObservedSite("c", "wgrad", 0, "gradient", "2:4", "mvue", (0, 2, 3), 1, False,
                        "aten.convolution_backward.default", words)  # fmt: skip
    made = Observe(torch.zeros(1), dy, dy * 2, [x, w], None, 0, site.to_json())
    dense, pruned = made.weight_gradients() or ()
    torch.testing.assert_close(dense, torch.nn.grad.conv2d_weight(x, w.shape, dy))
    torch.testing.assert_close(pruned, 2 * dense)


def test_it_stays_in_a_graph_though_nobody_reads_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    done = graph.call_function(torch.ops.aten.full.default, ([1], 0.0))
    graph.call_function(Observe.operator, (done, x, x, [], None, 0, MM.to_json()))
    graph.output(x)
    graph.eliminate_dead_code()
    assert len(Observe.nodes(graph)) == 1


@pytest.mark.parametrize("result", [None, torch.randn(4, 3)])
def test_opcheck(result: Tensor | None) -> None:
    torch.library.opcheck(Observe.operator, call(result=result).args)

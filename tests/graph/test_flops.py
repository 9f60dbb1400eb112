"""FLOPs of one call: against what eager operators multiply, and against hand counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.graph.flops import flops, flops_of_node

aten = torch.ops.aten
R = torch.randn


@pytest.mark.parametrize(
    ("op", "args", "expected"),
    [
        (aten.mm.default, (R(4, 8), R(8, 6)), 2 * 4 * 8 * 6),
        (aten.addmm.default, (R(6), R(4, 8), R(8, 6)), 2 * 4 * 8 * 6),
        (aten.bmm.default, (R(3, 4, 8), R(3, 8, 6)), 2 * 3 * 4 * 8 * 6),
        (aten.mv.default, (R(4, 8), R(8)), 2 * 4 * 8),
        (aten.addmv.default, (R(4), R(4, 8), R(8)), 2 * 4 * 8),
        (aten.dot.default, (R(8), R(8)), 2 * 8),
        (aten.addbmm.default, (R(4, 6), R(3, 4, 8), R(3, 8, 6)), 2 * 3 * 4 * 8 * 6),
        (aten._euclidean_dist.default, (R(4, 8), R(6, 8)), 2 * 4 * 6 * 8),
        (aten.conv_tbc.default, (R(10, 2, 8), R(3, 8, 5), R(5)), 2 * 8 * 2 * 5 * 3 * 8),
        # A bilinear layer of 8 and 6 inputs and 5 outputs, as torch calls it.
        (
            aten._trilinear.default,
            (R(4, 8), R(5, 8, 6), R(4, 6), [1, 3], [0], [1, 2], [2, 3]),
            2 * 4 * 5 * 8 * 6,
        ),
    ],
)
def test_of_an_operator(op: Any, args: Any, expected: int) -> None:
    assert flops(op, args, {}, op(*args)) == expected


def test_of_a_recurrent_layer() -> None:
    lstm, x = torch.nn.LSTM(16, 8), R(5, 3, 16)
    w = [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0]
    state = R(1, 3, 8)
    args = (x, *w, state, state, False, [], 2, 8, 1, True, False, False, True)
    assert flops(aten.mkldnn_rnn_layer.default, args, {}, None) == 2 * 15 * (32 * 16 + 32 * 8)


def test_nothing_is_known_of_attention_and_of_what_does_not_multiply() -> None:
    q = R(1, 2, 4, 8)
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert flops(attention, (q, q, q), {}, attention(q, q, q)) is None
    assert flops(aten.add.Tensor, (q, q), {}, q + q) is None
    assert flops(len, ([],), {}, 0) is None


def test_of_a_node_by_its_metadata() -> None:
    gm = make_fx(torch.mm, tracing_mode="symbolic")(R(4, 8), R(8, 6))
    (product,) = gm.graph.find_nodes(op="call_function", target=aten.mm.default)
    assert flops_of_node(product) == 2 * 4 * 8 * 6  # with the sizes that were traced
    assert flops_of_node(fx.Graph().call_function(aten.mm.default, ())) is None

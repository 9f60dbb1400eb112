"""Recurrent layers, which Dynamo leaves to eager mode unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.functions import WIDTH, language_model


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones; every batch is one sequence."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.up, self.rnn = nn.Linear(WIDTH, WIDTH), kind(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.up(x).view(4, -1, WIDTH)
        return x + self.down(self.rnn(steps)[0].view_as(x))


def _entry(name: str, unit: Callable[[], nn.Module], note: str, **fields: Any) -> Entry:
    make, loss = language_model(unit)
    return Entry(name, "recurrent", make, loss, note, **fields)


ENTRIES = (
    _entry(
        "lstm",
        lambda: Recurrent(nn.LSTM),
        "Dynamo leaves `nn.LSTM` to eager mode, and with it what follows in the same function: "
        "`explain` counts both as such",
        eager_only=("unit.rnn", "unit.down"),
    ),
    _entry(
        "gru",
        lambda: Recurrent(nn.GRU),
        "with `torch._dynamo.config.allow_rnn = True`, which lets Dynamo trace `nn.GRU` and "
        "`nn.RNN`; a step of the sequence is a product",
        dynamo={"allow_rnn": True},
    ),
)

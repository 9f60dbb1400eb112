"""What is judged was predicted."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from benchmarks import predictions
from benchmarks.training_step import SECTIONS


def test_every_judged_figure_has_a_prediction():
    judged = {key for key in predictions.TARGETS if key.mode != "bitwise"}
    assert judged <= set(predictions.PREDICTIONS)
    assert {key.mode for key in predictions.PREDICTIONS} < set(SECTIONS)

"""A training loop as one writes it by hand: autocast, accumulation, clipping, evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers import page

CODE = page.example("A plain loop")


@pytest.mark.slow
def test_it_trains_and_saves_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, graphs = page.run(CODE)
    assert page.pruned_roles() == page.ROLES
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    assert found["accuracy"] > 0.5
    assert list(torch.load("plain.pt")) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert graphs == page.run(page.with_eager_backend(CODE))[1]

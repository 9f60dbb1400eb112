"""Accelerate trains a model that was compiled in place, and knows no backend but its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers import page

pytest.importorskip("accelerate", reason="needs nmcompile[integrations]")

from accelerate import Accelerator
from accelerate.state import AcceleratorState

CODE = page.example("Accelerate")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_it_trains_and_saves_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    found, graphs = page.run(CODE)
    assert page.pruned_roles() == page.ROLES
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    assert found["accuracy"] > 0.5
    saved = load_file("accelerate/model.safetensors")
    assert sorted(saved) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert found["accelerator"].unwrap_model(found["model"]) is found["model"]
    assert graphs == page.run(page.with_eager_backend(CODE))[1]


def test_the_name_of_the_backend_is_rejected() -> None:
    with pytest.raises(ValueError, match="'NM_SPARSE' is not a valid DynamoBackend"):
        Accelerator(dynamo_backend="nm_sparse", cpu=True)

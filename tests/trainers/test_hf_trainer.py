"""Hugging Face's Trainer trains a model that was compiled in place, and rejects the name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nmcompile import ScheduleError
from tests.trainers import page

pytest.importorskip("transformers", reason="needs nmcompile[integrations]")
pytest.importorskip("accelerate", reason="needs nmcompile[integrations]")

from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

CODE = page.example("Hugging Face Trainer")


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """TrainingArguments writes what it is told into the environment, for Accelerate."""
    monkeypatch.chdir(tmp_path)
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_it_trains_and_saves_plain_names() -> None:
    found, graphs = page.run(CODE)
    assert page.pruned_roles() == page.ROLES
    assert found["after"] < 0.9 * found["before"]
    logged = [entry["loss"] for entry in found["trainer"].state.log_history if "loss" in entry]
    assert all(map(math.isfinite, logged))
    trained = found["model"].state_dict()
    for folder in ("final", "checkpoint-8"):
        saved = load_file(f"trainer/{folder}/model.safetensors")
        assert saved.keys() <= trained.keys()
        assert "model.layers.0.self_attn.q_proj.weight" in saved
    reloaded = found["reloaded"].state_dict()
    assert all(torch.equal(trained[name], reloaded[name]) for name in trained)
    assert graphs == page.run(page.with_eager_backend(CODE))[1]


def test_the_name_of_the_backend_is_rejected() -> None:
    arguments = TrainingArguments("out", torch_compile_backend="nm_sparse", report_to="none")
    with pytest.raises(ValueError, match="'NM_SPARSE' is not a valid DynamoBackend"):
        Trainer(torch.nn.Linear(4, 4), arguments)


@pytest.mark.slow
def test_a_schedule_follows_its_steps_and_goes_on_from_a_checkpoint() -> None:
    code = page.example("Hugging Face Trainer", of="schedule.md")
    found, graphs = page.run(code)
    schedule = found["schedule"]
    assert schedule.steps == 8
    pruned = {start: r.totals.pruned_sites > 0 for start, r in schedule.reports.items()}
    assert pruned == {0: False, 3: True, 6: False}
    assert graphs == 2  # dense and full: all at the first call, none at a switch
    losses = [e["loss"] for e in found["trainer"].state.log_history if "loss" in e]

    resumed = code.replace("trainer.train()", 'trainer.train("scheduled/checkpoint-4")')
    again, _ = page.run(resumed)
    assert again["schedule"].steps == 8
    entries = [e["loss"] for e in again["trainer"].state.log_history if "loss" in e]
    assert entries == losses
    other = resumed.replace('3: "full"', '2: "full"')
    with pytest.raises(ScheduleError, match="begin at steps 0, 3, 6, and not at 0, 2, 6"):
        page.run(other)

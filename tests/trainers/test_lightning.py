"""PyTorch Lightning trains a module whose network was compiled in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nmcompile import ScheduleError
from tests.trainers import page

pytest.importorskip("lightning", reason="needs nmcompile[integrations]")

CODE = page.example("PyTorch Lightning")


@pytest.mark.slow
def test_it_trains_and_saves_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, graphs = page.run(CODE)
    assert page.pruned_roles() == page.ROLES
    assert found["after"]["val_loss"] < 0.7 * found["before"]["val_loss"]
    names = [f"net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert list(torch.load("lightning.ckpt", weights_only=False)["state_dict"]) == names
    trained, reloaded = found["classifier"].state_dict(), found["reloaded"].state_dict()
    assert all(torch.equal(trained[name], reloaded[name]) for name in names)
    assert graphs == page.run(page.with_eager_backend(CODE))[1]


@pytest.mark.slow
def test_a_schedule_follows_its_steps_and_goes_on_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = page.example("PyTorch Lightning", of="schedule.md")
    found, graphs = page.run(code)
    schedule = found["schedule"]
    assert schedule.steps == 20
    pruned = {start: r.totals.pruned_sites > 0 for start, r in schedule.reports.items()}
    assert pruned == {0: False, 4: True, 16: False}
    assert graphs == 2
    longer = code.replace("max_epochs=10", "max_epochs=11").replace(
        "trainer.fit(classifier, loader)",
        'trainer.fit(classifier, loader, ckpt_path="scheduled.ckpt", weights_only=False)',
    )
    again, _ = page.run(longer)
    assert again["schedule"].steps == 22
    with pytest.raises(ScheduleError, match="begin at steps 0, 4, 16, and not at 0, 5, 16"):
        page.run(longer.replace('4: "full"', '5: "full"').replace("=11", "=12"))

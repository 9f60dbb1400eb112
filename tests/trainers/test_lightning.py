"""PyTorch Lightning trains a module whose network was compiled in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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

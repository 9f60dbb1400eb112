"""Callbacks that follow a trainer's count; tests/trainers has whole trainings."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from nmcompile import NMError, Schedule, ScheduleError
from nmcompile.schedule.trainers import lightning_callback

PHASES = {0: "dense", 10: "full"}


def schedule(phases: Any = PHASES) -> Schedule:
    return Schedule(nn.Linear(4, 4), phases)


def at(step: int, **saved: Any) -> Any:
    return SimpleNamespace(global_step=step, stateful_callbacks=saved)


def test_transformers_counts_the_steps() -> None:
    pytest.importorskip("transformers", reason="needs nmcompile[integrations]")
    one = schedule()
    callback = one.transformers_callback()
    for step in (0, 9, 10, 11):
        callback.on_step_end(None, at(step), None)
        assert one.steps == step
    callback.on_train_begin(None, at(0), None)  # train() once more
    assert one.steps == 0


def test_transformers_keeps_the_phases_and_makes_the_callback_anew() -> None:
    pytest.importorskip("transformers", reason="needs nmcompile[integrations]")
    one, name = schedule(), "ScheduleCallback"
    callback = one.transformers_callback()
    saved = json.loads(json.dumps(callback.state()))  # as trainer_state.json has it
    again = type(callback).from_state(saved)
    again.on_train_begin(None, at(12, **{name: saved}), None)
    assert one.steps == 12
    other = schedule({0: "dense", 11: "full"}).transformers_callback().state()
    again.on_train_begin(None, at(3, **{name: [other, saved]}), None)  # of two models
    assert one.steps == 3
    with pytest.raises(ScheduleError, match="the checkpoint is of another schedule"):
        again.on_train_begin(None, at(12, **{name: other}), None)
    assert one.steps == 3


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_counts_the_steps_under_either_name(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(package, reason="needs nmcompile[integrations]")
    for name in ("lightning", "pytorch_lightning"):
        if name != package.split(".")[0]:
            monkeypatch.delitem(sys.modules, name, raising=False)
    one = schedule()
    callback = one.lightning_callback()
    assert isinstance(callback, module.Callback)
    callback.on_train_start(at(0), None)
    callback.on_train_batch_end(at(10), None, None, None, 9)
    assert one.steps == 10
    two = schedule()
    two.lightning_callback().load_state_dict(callback.state_dict())
    assert two.steps == 10
    with pytest.raises(ScheduleError, match="another schedule"):
        schedule({0: "full"}).lightning_callback().load_state_dict(callback.state_dict())


def test_a_trainer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("transformers", "lightning", "pytorch_lightning")
    for name in [n for n in sys.modules if n.split(".")[0] in missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing(missing), *sys.meta_path])
    one = schedule()
    with pytest.raises(NMError, match=r"transformers is not installed.*pip install transformers"):
        one.transformers_callback()
    with pytest.raises(NMError, match=r"lightning is not installed.*pip install lightning"):
        lightning_callback(one)


class _Missing:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, *rest: Any) -> None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

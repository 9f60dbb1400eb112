"""A schedule inside of a trainer that makes the steps: callbacks that follow its count."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nmcompile.errors import NMError, ScheduleError
from nmcompile.schedule.phases import Phases

if TYPE_CHECKING:
    from nmcompile.schedule.schedule import Schedule


def transformers_callback(schedule: Schedule, phases: Phases) -> Any:
    """See :meth:`nmcompile.Schedule.transformers_callback`."""
    found = _imported("transformers", "transformers.trainer_callback")

    class ScheduleCallback(found.TrainerCallback, found.ExportableState):  # type: ignore[misc,name-defined]
        """The step is the trainer's ``global_step``; the phases stand in ``trainer_state.json``."""

        # The trainer may make it anew from what it saved: then with no argument.

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"saved": schedule.state_dict()}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved = state.stateful_callbacks.get(type(self).__name__, [])
            _check(phases, [saved] if isinstance(saved, Mapping) else saved)
            schedule.step(at=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            schedule.step(at=state.global_step)

    return ScheduleCallback()


def _check(phases: Phases, saved: list[Any]) -> None:
    """One of the saved schedules must be this one; a trainer may have those of several models."""
    errors = []
    for entry in saved:
        try:
            phases.step_of(entry["attributes"]["saved"])
        except ScheduleError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[0]


def lightning_callback(schedule: Schedule) -> Any:
    """See :meth:`nmcompile.Schedule.lightning_callback`."""
    base: Any = _lightning().Callback

    class ScheduleCallback(base):  # type: ignore[misc]
        """The step is the trainer's ``global_step``; checkpoints hold the phases."""

        @property
        def state_key(self) -> str:
            # One of each, where a trainer has the schedules of several models.
            return f"nmcompile.Schedule of {type(schedule.model).__qualname__}"

        def state_dict(self) -> dict[str, Any]:
            return schedule.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            schedule.load_state_dict(state_dict)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            schedule.step(at=trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *rest: Any, **kwargs: Any) -> None:
            schedule.step(at=trainer.global_step)

    return ScheduleCallback()


def _lightning() -> Any:
    """Whichever of its two packages is in use: each knows its own classes alone."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    names.sort(key=lambda name: name.split(".")[0] not in sys.modules)
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return _imported("lightning", names[-1])


def _imported(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NMError(
            f"{package} is not installed, and this callback is for its trainer: "
            f"pip install {package} ({error})"
        ) from error

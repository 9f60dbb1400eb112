"""From which step on which policy holds: read and checked whole, before anything is compiled."""

from __future__ import annotations

import itertools
import operator
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nmcompile.errors import PolicyError, ScheduleError, shown
from nmcompile.policy import Policy

_EXAMPLE = 'such as {0: "dense", 1000: "full", 9000: "dense"}'
_STATE_VERSION = 1


@dataclass(frozen=True)
class Phases:
    """The policies of a schedule, each with the step at which it begins, in order.

    ``policies`` holds one object for each distinct policy: phases that say the same share it.
    ``names`` are what the user called them.
    """

    starts: tuple[int, ...]
    policies: tuple[Policy, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, phases: object) -> Phases:
        """Check the steps and read every policy.

        Raises:
            ScheduleError: what is wrong with the steps.
            PolicyError: a policy that cannot be read, and the step at which it would begin.
        """
        if not isinstance(phases, Mapping):
            raise ScheduleError(
                f"a schedule is a mapping of steps to policies, {_EXAMPLE}, not {shown(phases)}"
            )
        starts = [step_number(start, "a phase begins at a step") for start in phases]
        if not starts or min(starts) != 0:
            raise ScheduleError(
                f"no phase begins at step 0: write what holds from there, {_EXAMPLE}"
            )
        for before, after in itertools.pairwise(starts):
            if after < before:
                raise ScheduleError(
                    f"the phases are out of order: step {after} is written after step {before}; "
                    "write them in the order in which they begin"
                )
        distinct: dict[str, Policy] = {}
        policies = []
        for start, value in phases.items():
            try:
                if value is None:
                    raise PolicyError('there is no policy: write a recipe\'s name, such as "dense"')
                policy = Policy.resolve(value)
            except PolicyError as error:
                text = f"the phase from step {start} on: {error}"
                raise PolicyError(text, error.problems) from error
            # A copy: reports are found by the policy object, which a recipe's name shares.
            policies.append(distinct.setdefault(policy.digest, policy.model_copy()))
        return cls(tuple(starts), tuple(policies), tuple(map(_name, phases.values())))

    @property
    def distinct(self) -> tuple[Policy, ...]:
        """Each policy once, in the order of its first phase."""
        return tuple({id(policy): policy for policy in self.policies}.values())

    def start_of(self, policy: Policy) -> int:
        """The first step at which this policy object holds."""
        pairs = zip(self.starts, self.policies, strict=True)
        return next(start for start, found in pairs if found is policy)

    def index_at(self, step: int) -> int:
        """The number of the phase that holds after so many steps, counted from 0."""
        return bisect_right(self.starts, step) - 1

    def written(self) -> list[list[Any]]:
        """Steps and policies as JSON can hold them: what a checkpoint is compared by."""
        return [[s, p.to_toml()] for s, p in zip(self.starts, self.policies, strict=True)]

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps, after so many steps."""
        return {"version": _STATE_VERSION, "step": step, "phases": self.written()}

    def step_of(self, state: object) -> int:
        """The step of what ``state`` made.

        Raises:
            ScheduleError: it is no such thing, or of another schedule.
        """
        if not isinstance(state, Mapping) or not {"version", "step", "phases"} <= state.keys():
            raise ScheduleError(
                f"{shown(state)} is not the state of a schedule: give what state_dict() returned"
            )
        if state["version"] != _STATE_VERSION:
            raise ScheduleError(
                f"the state is of version {shown(state['version'])}, and this nmcompile reads "
                f"version {_STATE_VERSION}"
            )
        step = step_number(state["step"], "a schedule has made a number of steps")
        if difference := self._difference(state["phases"]):
            raise ScheduleError(
                f"the checkpoint is of another schedule: {difference}; make the schedule that it "
                f"was saved with, or go on under this one with schedule.step(at={step})"
            )
        return step

    def _difference(self, saved: Any) -> str:
        try:
            theirs = {int(start): str(policy) for start, policy in saved}
        except (TypeError, ValueError):
            return "its phases are no list of steps and policies"
        ours = dict(self.written())
        if theirs.keys() != ours.keys():
            return f"its phases begin at steps {_listed(theirs)}, and not at {_listed(ours)}"
        changed = [start for start, policy in ours.items() if theirs[start] != policy]
        return f"it has another policy from step {changed[0]} on" if changed else ""


def step_number(value: object, what: str) -> int:
    """``value``, if it is a step. Raises ``ScheduleError``."""
    try:
        step = operator.index(value)  # type: ignore[arg-type]  # integers of NumPy too
    except TypeError:
        step = -1
    if isinstance(value, bool) or step < 0:
        raise ScheduleError(f"{what}, which is a whole number from 0 on, not {shown(value)}")
    return step


def _name(policy: object) -> str:
    return os.fspath(policy) if isinstance(policy, (str, os.PathLike)) else "a policy"


def _listed(starts: Mapping[int, Any]) -> str:
    return ", ".join(map(str, sorted(starts)))

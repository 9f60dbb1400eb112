"""Phases: read whole at the start, and compared with those of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nmcompile import Policy, PolicyError, ScheduleError
from nmcompile.schedule.phases import Phases, step_number

PHASES = {0: "dense", 10: "full", 25: "dense"}


def test_which_phase_holds_after_so_many_steps() -> None:
    phases = Phases.read(PHASES)
    assert [phases.index_at(s) for s in (0, 9, 10, 24, 25, 10**6)] == [0, 0, 1, 1, 2, 2]
    assert phases.policies == tuple(map(Policy.recipe, PHASES.values()))


def test_phases_that_say_the_same_share_a_policy_that_is_theirs_alone() -> None:
    phases, other = Phases.read(PHASES), Phases.read(PHASES)
    first, second, third = phases.policies
    assert first is third
    assert phases.distinct == (first, second)
    assert first is not other.policies[0]
    assert first is not Policy.recipe("dense")


def test_a_policy_is_a_recipe_a_file_an_object_or_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('schema = 1\nextends = "full"\n')
    phases = Phases.read({0: str(file), 1: file, 2: Policy(extends="full"), 3: {"extends": "full"}})
    file.write_text("no longer a policy")  # it was read
    assert {p.extends for p in phases.policies} == {"full"}


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        (3, "a mapping of steps to policies, such as {0: .*, not 3"),
        ({}, "no phase begins at step 0"),
        ({5: "full"}, "no phase begins at step 0"),
        ({0: "dense", 9: "full", 5: "dense"}, "step 5 is written after step 9"),
        ({5: "dense", 0: "full"}, "step 0 is written after step 5"),
        ({0: "dense", -1: "full"}, "from 0 on, not -1"),
        ({0: "dense", 1.5: "full"}, "from 0 on, not 1.5"),
        ({0: "dense", "7": "full"}, "from 0 on, not '7'"),
        ({False: "dense"}, "from 0 on, not False"),
    ],
)
def test_what_is_no_schedule(phases: Any, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        Phases.read(phases)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("fll", "the phase from step 9000 on: 'fll' is neither .* did you mean 'full'"),
        ("missing.toml", "the phase from step 9000 on: .*missing.toml"),
        (None, "the phase from step 9000 on: there is no policy"),
        ({"rule": [{"role": "fprp"}]}, "the phase from step 9000 on: (.|\n)*fprop"),
    ],
)
def test_a_policy_that_cannot_be_read_names_its_phase(policy: Any, words: str) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        Phases.read({0: "dense", 9000: policy})
    assert caught.value.problems


def test_integers_of_other_kinds_are_steps() -> None:
    numpy = pytest.importorskip("numpy")
    assert step_number(numpy.int64(7), "a step") == 7


def test_a_state_is_plain_and_leads_back() -> None:
    phases = Phases.read(PHASES)
    state = json.loads(json.dumps(phases.state(17)))
    assert Phases.read(PHASES).step_of(state) == 17


def test_a_state_does_not_depend_on_where_a_file_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.toml").write_text('schema = 1\nextends = "full"\n')
    a, b = (Phases.read({0: tmp_path / folder / "p.toml"}) for folder in ("a", "b"))
    assert b.step_of(a.state(3)) == 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({0: "dense", 11: "full", 25: "dense"}, "begin at steps 0, 11, 25, and not at 0, 10, 25"),
        ({0: "dense", 10: "gradients", 25: "dense"}, "another policy from step 10 on"),
    ],
)
def test_the_state_of_another_schedule_is_refused(changed: Any, words: str) -> None:
    state = Phases.read(changed).state(12)
    with pytest.raises(ScheduleError, match=rf"{words}.*schedule\.step\(at=12\)"):
        Phases.read(PHASES).step_of(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "of version 2, and this nmcompile reads version 1"),
        ({"step": -3}, "not -3"),
        ({"phases": 7}, "no list of steps and policies"),
    ],
)
def test_a_state_that_is_damaged(change: dict[str, Any], words: str) -> None:
    phases = Phases.read(PHASES)
    with pytest.raises(ScheduleError, match=words):
        phases.step_of(phases.state(3) | change)


@pytest.mark.parametrize("state", [None, {}, {"step": 3}, [1]])
def test_what_is_no_state(state: Any) -> None:
    with pytest.raises(ScheduleError, match=r"is not the state of a schedule: .* state_dict\(\)"):
        Phases.read(PHASES).step_of(state)

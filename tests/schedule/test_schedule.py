"""Schedules of compiled models: what holds when, what a switch costs, and going on later."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import ArgumentError, OptionError, Policy, PolicyError, Rule, Schedule, ScheduleError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.norm = nn.Linear(16, 16), nn.Dropout(0.1), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(torch.relu(self.fc(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


PHASES = {0: "dense", 3: "gradients", 7: "dense"}
X = torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
Y = X[:, :8].argmax(1)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextmanager
def nothing_compiles() -> Iterator[None]:
    before = compilations()
    with torch.compiler.set_stance("fail_on_recompile"):
        yield
    assert compilations() == before


class Training:
    """A run that can be cut off and gone on with."""

    def __init__(self, phases: Any = PHASES, **keys: Any) -> None:
        self.model = net()
        self.schedule = Schedule(self.model, phases, **keys)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def step(self) -> float:
        loss = nn.functional.cross_entropy(self.model(X), Y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        parts = (self.model, self.optimizer, self.schedule)
        return {"parts": [p.state_dict() for p in parts], "random": torch.get_rng_state()}

    def load(self, state: dict[str, Any]) -> None:
        for part, saved in zip((self.model, self.optimizer, self.schedule), state["parts"],
                               strict=True):  # fmt: skip
            part.load_state_dict(saved)
        torch.set_rng_state(state["random"])


@pytest.mark.slow
@pytest.mark.parametrize("each", [None, "layers.*"])
def test_a_warm_run_compiles_nothing_and_computes_what_a_cold_one_does(
    each: str | None, tmp_path: Path
) -> None:
    cold = Training(each=each)
    torch.manual_seed(1)
    expected = [cold.step() for _ in range(10)]
    assert len({str(loss) for loss in expected}) == 10

    warm = Training(each=each)
    before = copy.deepcopy(warm.model.state_dict())
    torch.manual_seed(1)
    warm.schedule.warm_up(X)
    assert all(torch.equal(v, before[k]) for k, v in warm.model.state_dict().items())
    found = []
    with nothing_compiles():
        for step in range(10):
            if step == 5:
                torch.save(warm.state(), tmp_path / "checkpoint.pt")
            found.append(warm.step())
    assert found == expected

    late = Training(each=each)
    late.load(torch.load(tmp_path / "checkpoint.pt"))
    assert late.schedule.steps == 5
    assert late.schedule.policy == Policy.recipe("gradients")
    assert [late.step() for _ in range(5)] == expected[5:]


@pytest.mark.slow
def test_each_phase_is_what_its_policy_says() -> None:
    training = Training()
    assert training.schedule.reports == {}
    for _ in range(8):
        training.step()
    reports = training.schedule.reports
    assert list(reports) == [0, 3, 7]
    pruned = {s: {str(x.role) for x in r.sites if x.pruned} for s, r in reports.items()}
    assert pruned == {0: set(), 3: {"dgrad", "wgrad"}, 7: set()}
    # In evaluation as well: no phase prunes a forward here, and batch norm is fixed.
    model = training.model.eval()
    with torch.no_grad():
        training.schedule.warm_up(X)
        with nothing_compiles():
            outputs = []
            for at in (0, 3):
                training.schedule.step(at=at)
                outputs.append(model(X))
        assert torch.equal(*outputs)
        assert torch.allclose(outputs[0], model._call_impl(X), atol=1e-5)


@pytest.mark.slow
def test_a_second_schedule_of_a_model_has_its_reports_although_it_runs_the_same_code() -> None:
    model = net()
    for _ in range(2):
        schedule = Schedule(model, {0: "gradients"})
        schedule.warm_up(X)
        assert schedule.reports[0].totals.pruned_sites == 5


@pytest.mark.slow
def test_twelve_policies_are_twelve_graphs_and_no_ninth_runs_eagerly() -> None:
    assert torch._dynamo.config.recompile_limit == 8

    def policy(n: int) -> Policy:
        return Policy(rules=[Rule(role="wgrad", prune="gradient", format=f"{n}:16", method="mse")])

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = Small()
    schedule = Schedule(model, {n - 1: policy(n) for n in range(1, 13)})
    before = compilations()
    schedule.warm_up(X)
    assert compilations() - before == 12
    with nothing_compiles():
        # What is kept of each column of dY [T, O] grows with every phase.
        for n in range(1, 13):
            model.zero_grad()
            (model(X) * torch.arange(32)[:, None].add(1)).sum().backward()
            kept = torch.zeros(32)
            for start in (0, 16):
                kept[start + 16 - n : start + 16] = torch.arange(1, 33)[start + 16 - n : start + 16]
            torch.testing.assert_close(model.fc.weight.grad, (kept @ X).expand(8, 16))
            schedule.step()
    assert [r.totals.pruned_sites for r in schedule.reports.values()] == [1] * 12


@pytest.mark.slow
def test_a_switch_takes_less_than_a_millisecond() -> None:
    schedule = Schedule(net(), {i: ("dense", "full")[i % 2] for i in range(40)}, each="layers.*")
    times = []
    for _ in range(39):
        start = time.perf_counter()
        schedule.step()
        times.append(time.perf_counter() - start)
    assert sorted(times)[20] < 1e-3  # the median: the machine is shared


@pytest.mark.slow
@pytest.mark.parametrize("each", [None, "layers.*"])
def test_without_arguments_the_next_call_of_each_kind_warms_up(each: str | None) -> None:
    training = Training(each=each)
    before = compilations()
    training.schedule.warm_up()
    assert compilations() == before
    model = training.model
    with torch.no_grad():
        model.eval()(X)  # a trainer's sanity check
        model.train()
    random.seed(0)
    training.step()
    with nothing_compiles():
        for _ in range(9):
            training.step()
        with torch.no_grad():
            for at in PHASES:
                training.schedule.step(at=at)
                model.eval()(X)


@pytest.mark.slow
def test_a_version_that_cannot_be_compiled_says_of_which_phase_it_is() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    schedule = Schedule(Fails(), {0: "dense", 4: "full"})
    with pytest.raises(Exception) as caught:  # noqa: PT011  Dynamo's own
        schedule.warm_up(torch.randn(3, 4))
    assert caught.value.__notes__ == ["This was the version of the phase from step 0 on."]


# What needs no compilation


def test_the_model_stays_the_users() -> None:
    model = net()
    names = list(model.state_dict())
    schedule = Schedule(model, PHASES)
    assert schedule.model is model
    assert type(model) is Net
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model)._compiled_call_impl is None


def test_where_it_stands() -> None:
    schedule = Schedule(net(), PHASES)
    assert schedule.phases == {s: Policy.recipe(name) for s, name in PHASES.items()}
    text = "Schedule of Net after {} steps; 0: dense{}, 3: gradients{}, 7: dense"
    assert repr(schedule) == text.format(0, " (now)", "")
    for _ in range(3):
        schedule.step()
    assert schedule.steps == 3
    assert repr(schedule) == text.format(3, "", " (now)")
    schedule.step(at=100)
    assert schedule.policy == Policy.recipe("dense")
    with pytest.raises(ScheduleError, match=r"from 0 on, not -1"):
        schedule.step(at=-1)
    assert schedule.steps == 100


def test_a_data_parallel_wrapper_is_looked_through() -> None:
    model = net()
    assert Schedule(nn.DataParallel(model), PHASES).model is model


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": 3}, ArgumentError, "changes a module in place"),
        ({"model": torch.compile(nn.Linear(4, 4))}, ArgumentError, "give the model itself"),
        ({"phases": {0: "dense", 9: "fll"}}, PolicyError, "from step 9 on"),
        ({"phases": {3: "dense"}}, ScheduleError, "no phase begins at step 0"),
        ({"each": "layer.*"}, OptionError, "matches no module: did you mean 'layers"),
        ({"options": {"policy": "full"}}, OptionError, "write it as a phase"),
        ({"options": 3}, ArgumentError, "options = 3"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(given: Any, error: type[Exception], words: str) -> None:
    arguments = {"model": net(), "phases": PHASES} | given
    with pytest.raises(error, match=words):
        Schedule(**arguments)
    if isinstance(arguments["model"], Net):
        assert arguments["model"]._compiled_call_impl is None


def test_blocks_inside_of_a_compiled_model_are_refused() -> None:
    model = nmcompile.compile(net(), "full")
    with pytest.raises(ArgumentError, match=r"the model is compiled already, with the blocks"):
        Schedule(model, PHASES, each="layers.*")
    assert all(layer._compiled_call_impl is None for layer in model.layers)
    assert Schedule(model, PHASES).policy == Policy.recipe("dense")  # takes its place


def test_a_model_that_was_compiled_again_is_noticed_at_the_next_switch() -> None:
    schedule = Schedule(net(), PHASES)
    schedule.model.compile()
    schedule.step()
    with pytest.raises(ScheduleError, match="Net was compiled again after the schedule was made"):
        schedule.step(at=3)
    assert schedule.steps == 1


def test_the_checkpoint_of_another_schedule_changes_nothing() -> None:
    schedule = Schedule(net(), PHASES)
    with pytest.raises(ScheduleError, match="the checkpoint is of another schedule"):
        schedule.load_state_dict(Schedule(net(), {0: "dense", 3: "full"}).state_dict())
    assert schedule.steps == 0

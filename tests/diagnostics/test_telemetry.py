"""Samples of models in training: their figures, and that nothing of the training is changed."""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nmcompile
from nmcompile import ArgumentError, NMError, Policy, Schedule
from nmcompile.ops.observe import SAMPLES

SIZE = 16


class Net(nn.Module):
    """With all that a sample must leave alone: a norm's statistics and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.conv(x))).mean((2, 3))
        for layer in self.layers:
            x = x + self.drop(F.gelu(layer(x)))
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def compiled(model: nn.Module, policy: Any) -> Any:
    return torch.compile(model, backend="nm_sparse", options={"policy": policy})


def in_place(model: nn.Module, policy: str) -> Any:
    return nmcompile.compile(model, policy)


def by_layer(model: nn.Module, policy: str) -> Any:
    return nmcompile.compile(model, policy, each="layers.*")


def scheduled(model: nn.Module, policy: str) -> Any:
    return Schedule(model, {0: policy, 3: "dense", 5: policy}).model


def train(model: Any, meter: Any = None, steps: int = 7) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(6, 4, 5, 5), torch.randint(8, (6,))
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if meter is not None:
            meter.step()
    return losses


@contextmanager
def nothing_compiles() -> Iterator[None]:
    before = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    with torch.compiler.set_stance("fail_on_recompile"):
        yield
    assert int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == before


def of(rows: Any, module: str, role: str) -> dict[str, Any]:
    (row,) = (r for r in rows if r["module"] == module and r["role"] == role)
    return dict(row)


# -- values: operands that are known without looking inside ----------------------------------------


def blocks(x: Tensor) -> Tensor:
    """``[blocks, 4]`` along the last dimension."""
    return x.reshape(-1, 4)


def threshold(x: Tensor) -> Tensor:
    """T of MVUE 2:4 for each element of ``[blocks, 4]``: min(S / 2, S - max)."""
    magnitude = x.abs()
    total, largest = magnitude.sum(1), magnitude.amax(1)
    return torch.minimum(total / 2, total - largest)[:, None]


def variance(x: Tensor) -> float:
    """sum |a| (T - |a|) over where |a| < T, over the sum of squares."""
    x = blocks(x)
    left = x.abs() * (threshold(x) - x.abs()).clamp(min=0)
    return (left.sum() / x.square().sum()).item()


def saturation(x: Tensor) -> float:
    x = blocks(x)
    return (x.abs() >= threshold(x) * (1 + 1e-6)).any(1).float().mean().item()


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def energy(kept: Tensor, x: Tensor) -> float:
    return (x[kept != 0].square().sum() / x.square().sum()).item()


class Alone(nn.Module):
    """A layer whose input and weight are unit matrices: gradients are what was multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(SIZE, SIZE, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # dY is c
        return (self.fc(x) * c).sum()


@pytest.mark.parametrize("policy", ["gradients", "full"])
def test_figures_of_gradients_are_those_of_what_was_multiplied(policy: str) -> None:
    model = Alone()
    run = compiled(model, policy)
    meter = nmcompile.telemetry(run, every=1)
    x, c = torch.eye(SIZE, requires_grad=True), torch.randn(SIZE, SIZE)
    run(x, c).backward()
    meter.step()
    found = of(meter.rows, "fc", "dgrad")
    assert found["energy"] == pytest.approx(energy(x.grad, c))  # dX is prune(dY)
    assert found["variance"] == pytest.approx(variance(c), rel=1e-5)
    assert found["saturation"] == pytest.approx(saturation(c))
    assert found["cosine"] is None
    assert found["flips"] is None
    found = of(meter.rows, "fc", "wgrad")
    assert found["energy"] == pytest.approx(energy(model.fc.weight.grad, c.t()))
    assert found["variance"] == pytest.approx(variance(c.t()), rel=1e-5)
    assert found["saturation"] == pytest.approx(saturation(c.t()))
    assert found["cosine"] == pytest.approx(cosine(model.fc.weight.grad, c.t()))
    assert 0 < found["cosine"] < 1
    roles = {r["role"] for r in meter.rows}
    assert roles == ({"fprop", "dgrad", "wgrad"} if policy == "full" else {"dgrad", "wgrad"})


def test_figures_of_activations() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    meter = nmcompile.telemetry(run, every=1)
    x = torch.randn(4, SIZE)
    run(x).sum().backward()
    meter.step()
    (row,) = meter.rows
    kept = blocks(x).square().topk(2).values.sum() / x.square().sum()
    assert row["energy"] == pytest.approx(kept.item())
    assert [row[n] for n in ("variance", "saturation", "cosine", "flips")] == [None] * 4
    about = ["step", "module", "role", "product", "prune", "format", "method"]
    assert [row[n] for n in about] == [0, "", "fprop", 0, "activation", "2:4", "mse"]


@pytest.mark.slow
def test_figures_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False))
    run = compiled(model, "full")
    meter = nmcompile.telemetry(run, every=1)
    x, c = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4)
    (run(x) * c).sum().backward()
    meter.step()
    channels = x.detach().movedim(1, -1)
    kept = blocks(channels).square().topk(2).values.sum() / x.square().sum()
    assert of(meter.rows, "0", "fprop")["energy"] == pytest.approx(kept.item())
    found = of(meter.rows, "0", "dgrad")
    assert found["variance"] == pytest.approx(variance(c.movedim(1, -1)), rel=1e-5)
    found = of(meter.rows, "0", "wgrad")
    weight = model[0].weight
    dense = torch.nn.grad.conv2d_weight(x.detach(), weight.shape, c, padding=1)
    assert found["cosine"] == pytest.approx(cosine(weight.grad, dense), rel=1e-5)
    assert found["variance"] == pytest.approx(variance(c.movedim(1, 0).flatten(1)), rel=1e-5)


def test_figures_of_weights_and_how_many_places_are_new() -> None:
    model = Alone()
    run = compiled(model, "weights")
    meter = nmcompile.telemetry(run, every=2)
    x, masks, rows = torch.eye(SIZE, requires_grad=True), [], []
    for step in range(4):
        with torch.no_grad():
            model.fc.weight.normal_(generator=torch.Generator().manual_seed(step))
        c = torch.ones(SIZE, SIZE, requires_grad=True)
        run(x, c).backward()  # dC is what the product gave: the pruned weight's transpose
        pruned = c.grad.t()
        masks.append(pruned != 0)
        meter.step()
        if step % 2 == 0:
            rows.append(of(meter.rows, "fc", "fprop"))
            assert rows[-1]["energy"] == pytest.approx(energy(pruned, model.fc.weight))
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[0]["flips"] is None
    new = (masks[2] & ~masks[0]).sum() / masks[2].sum()
    assert 0 < rows[1]["flips"] == pytest.approx(new.item())
    assert of(meter.rows, "fc", "dgrad")["flips"] == rows[1]["flips"]  # the same mask


def test_calls_of_one_step_are_added_up() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    meter = nmcompile.telemetry(run, every=5)
    parts = torch.randn(3, 4, SIZE)
    for x in parts:
        run(x).sum().backward()
    meter.step()
    (row,) = meter.rows
    kept = blocks(parts).square().topk(2).values.sum() / parts.square().sum()
    assert row["energy"] == pytest.approx(kept.item())


def test_what_is_no_number_is_left_out() -> None:
    model = Alone()
    run = compiled(model, "gradients")
    meter = nmcompile.telemetry(run, every=1)
    x = torch.eye(SIZE, requires_grad=True)
    run(x, torch.full((SIZE, SIZE), torch.inf)).backward()
    meter.step()
    assert of(meter.rows, "fc", "wgrad")["energy"] is None
    run(x, torch.zeros(SIZE, SIZE)).backward()
    meter.step()
    found = of(meter.rows, "fc", "wgrad")
    assert [found[n] for n in ("energy", "variance", "cosine")] == [None] * 3
    assert found["saturation"] == 0


# -- nothing of the training is changed ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", "weights", "full-exact"])
@pytest.mark.parametrize("how", [compiled, in_place, by_layer, scheduled])
def test_a_run_with_telemetry_is_the_one_without(how: Callable[..., Any], policy: str) -> None:
    results = []
    for with_meter in (False, True):
        torch._dynamo.reset()
        model = net()
        run = how(model, policy)
        meter = nmcompile.telemetry(run, every=3) if with_meter else None
        losses = train(run, meter)
        state = [*model.state_dict().values(), torch.get_rng_state()]
        results.append((losses, state))
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
        assert not any(hooks)
    assert results[0][0] == results[1][0]
    pairs = zip(results[0][1], results[1][1], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert meter is not None
    assert {row["step"] for row in meter.rows} == {6}
    assert {row["role"] for row in meter.rows} == {"fprop", "dgrad", "wgrad"}


@pytest.mark.slow
def test_a_warm_schedule_compiles_nothing_any_more() -> None:
    schedule = Schedule(net(), {0: "dense", 2: "full", 5: "gradients"})
    rows: list[Any] = []
    meter = nmcompile.telemetry(schedule.model, every=2, to=rows.extend)
    schedule.warm_up(torch.randn(6, 4, 5, 5))
    with nothing_compiles():
        for both in ((meter.step, schedule.step), (schedule.step, meter.step)):
            schedule.step(at=0)
            meter.step(at=0)
            rows.clear()
            for _ in range(8):
                loss = schedule.model(torch.randn(6, 4, 5, 5)).square().mean()
                loss.backward()
                for count in both:
                    count()
            # A dense phase prunes nothing, so that there is nothing to see.
            seen = {s: {r["role"] for r in rows if r["step"] == s} for s in range(8)}
            assert {s for s, roles in seen.items() if roles} == {2, 4, 6}
            assert "fprop" in seen[2]
            assert "fprop" not in seen[6]


@pytest.mark.slow
def test_a_schedule_that_waits_for_its_first_call() -> None:
    schedule = Schedule(net(), {0: "full", 3: "gradients"})
    schedule.warm_up()
    meter = nmcompile.telemetry(schedule.model, every=1)
    train(schedule.model, meter, steps=2)
    assert {row["step"] for row in meter.rows} == {1}


@pytest.mark.slow
def test_models_of_one_class_are_told_apart() -> None:
    first, second = net(), net()
    runs = [compiled(model, "full") for model in (first, second)]
    meters = [nmcompile.telemetry(runs[0], every=1), None]
    for run, meter in zip(runs, meters, strict=True):
        train(run, meter, steps=1)
    assert meters[0] is not None
    before = meters[0].rows
    train(runs[1], steps=1)  # of which the meter sees nothing
    meters[0].step()
    assert meters[0].rows == before


def test_a_compiled_function() -> None:
    layer = nn.Linear(SIZE, 8)

    @torch.compile(backend="nm_sparse")
    def step(x: Tensor) -> Tensor:
        return layer(x).square().mean()

    meter = nmcompile.telemetry(step, every=1)
    step(torch.randn(4, SIZE)).backward()
    meter.step()
    assert {row["role"] for row in meter.rows} == {"fprop", "wgrad"}


def test_evaluation_is_not_seen() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    meter = nmcompile.telemetry(run, every=1)
    with torch.no_grad():
        run(torch.randn(4, SIZE))
    meter.step()
    assert meter.rows == ()


def test_the_model_is_freed_and_so_is_the_meter() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    meter = nmcompile.telemetry(run, every=1)
    number = meter.number
    assert number in SAMPLES
    del meter
    gc.collect()
    assert number not in SAMPLES
    run(torch.randn(4, SIZE)).sum().backward()


# -- when ------------------------------------------------------------------------------------------


class Counted:
    """A model that is trained so many steps; ``sampled`` are the steps of which rows came."""

    def __init__(self, every: int) -> None:
        self.run = compiled(nn.Linear(SIZE, 8), "activations")
        self.rows: list[Any] = []
        self.meter = nmcompile.telemetry(self.run, every=every, to=self.rows.extend)

    def steps(self, count: int) -> Counted:
        for _ in range(count):
            self.run(torch.randn(4, SIZE)).sum().backward()
            self.meter.step()
        return self

    @property
    def sampled(self) -> list[int]:
        return [row["step"] for row in self.rows]


def test_every() -> None:
    assert Counted(3).steps(8).sampled == [0, 3, 6]


def test_a_step_in_which_nothing_ran_is_no_sample() -> None:
    counted = Counted(3)
    counted.steps(3).meter.step()
    counted.meter.step()
    assert counted.steps(4).sampled == [0, 5, 6]
    assert counted.meter.steps == 9
    assert "9 steps" in repr(counted.meter)


def test_steps_that_something_else_counts() -> None:
    counted = Counted(10)
    counted.meter.step(at=995)  # where an earlier run stopped
    assert counted.steps(12).sampled == [1000]
    counted.meter.step(at=12)
    assert counted.steps(10).sampled == [1000, 20]
    for at in (25, 28, 31, 34, 37, 41, 44):  # of which none is a multiple of 10
        counted.run(torch.randn(4, SIZE)).sum().backward()
        counted.meter.step(at=at)
    assert counted.sampled == [1000, 20, 31, 41]


def test_a_closed_meter_samples_nothing() -> None:
    counted = Counted(1).steps(1)
    counted.meter.close()
    assert counted.steps(2).sampled == [0]


# -- where to --------------------------------------------------------------------------------------


class Writer:
    """What telemetry needs of a TensorBoard writer."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value


def test_a_tensorboard_writer() -> None:
    writer, model = Writer(), Alone()
    run = compiled(model, "full")
    meter = nmcompile.telemetry(run, every=1, to=writer)
    for _ in range(2):
        run(torch.eye(SIZE, requires_grad=True), torch.randn(SIZE, SIZE)).backward()
        meter.step()
    tags = {tag for tag, _ in writer.scalars}
    figures = {"fprop": ["energy"], "dgrad": ["energy", "variance", "saturation"]}
    figures["wgrad"] = [*figures["dgrad"], "cosine"]
    assert tags == {f"nmcompile/fc/{role}/{f}" for role, some in figures.items() for f in some}
    last = of(meter.rows, "fc", "wgrad")["cosine"]
    assert writer.scalars["nmcompile/fc/wgrad/cosine", 1] == last


def test_a_file_that_a_second_run_goes_on_with(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.csv"
    for start in (0, 2):
        torch._dynamo.reset()
        run = compiled(nn.Linear(SIZE, 8), "activations")
        meter = nmcompile.telemetry(run, every=1, to=path)
        assert path.exists() is (start > 0)  # nothing is written before there is something
        meter.step(at=start)
        for _ in range(2):
            run(torch.randn(4, SIZE)).sum().backward()
            meter.step()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["energy"]) == pytest.approx(meter.rows[0]["energy"], rel=1e-5)
    assert rows[-1]["cosine"] == ""


def test_of_several_processes_the_first_one_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmcompile.diagnostics.telemetry.is_first", lambda: False)
    for all_ranks, written in ((False, 0), (True, 1)):
        torch._dynamo.reset()
        rows: list[Any] = []
        run = compiled(nn.Linear(SIZE, 8), "activations")
        meter = nmcompile.telemetry(run, every=1, to=rows.extend, all_ranks=all_ranks)
        run(torch.randn(4, SIZE)).sum().backward()
        meter.step()
        assert (len(rows), len(meter.rows)) == (written, 1)


# -- what is an error ------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "100", None])
def test_every_must_be_a_number_of_steps(every: Any) -> None:
    run = compiled(nn.Linear(SIZE, 8), "full")
    with pytest.raises(ArgumentError, match=r"every = .*write a number of steps from 1 on"):
        nmcompile.telemetry(run, every=every)


@pytest.mark.parametrize("to", [3, object(), [], {}])
def test_to_must_be_something_that_writes(to: Any) -> None:
    run = compiled(nn.Linear(SIZE, 8), "full")
    with pytest.raises(ArgumentError, match=r"to = .*write .*add_scalar"):
        nmcompile.telemetry(run, to=to)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    run = compiled(nn.Linear(SIZE, 8), "full")
    with pytest.raises(NMError, match="there is no folder"):
        nmcompile.telemetry(run, to=tmp_path / "none" / "telemetry.csv")
    assert nmcompile.telemetry(run, to=tmp_path / "telemetry.csv").steps == 0  # nothing was made


@pytest.mark.parametrize("model", [nn.Linear(8, 8), torch.compile(nn.Linear(8, 8)), print, 3])
def test_a_model_that_was_never_compiled(model: Any) -> None:
    with pytest.raises(ArgumentError, match="was never compiled with backend nm_sparse"):
        nmcompile.telemetry(model)


def test_a_model_that_has_run() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    run(torch.randn(4, SIZE))
    with pytest.raises(ArgumentError, match="Linear has run already"):
        nmcompile.telemetry(run)
    torch._dynamo.reset()
    meter = nmcompile.telemetry(run, every=1)
    run(torch.randn(4, SIZE)).sum().backward()
    meter.step()
    assert len(meter.rows) == 1


def test_a_second_meter() -> None:
    run = compiled(nn.Linear(SIZE, 8), "activations")
    meter = nmcompile.telemetry(run)
    with pytest.raises(ArgumentError, match="Linear has a meter already"):
        nmcompile.telemetry(run)
    meter.close()
    nmcompile.telemetry(run)


@pytest.mark.parametrize("at", [-1, 1.5, "7"])
def test_at_must_be_a_number_of_steps(at: Any) -> None:
    meter = nmcompile.telemetry(compiled(nn.Linear(SIZE, 8), "full"))
    with pytest.raises(ArgumentError, match=r"at = .*write a number of steps from 0 on"):
        meter.step(at=at)
    assert meter.steps == 0


@pytest.mark.slow
def test_masks_that_are_kept_between_steps() -> None:
    kept = {"schema": 1, "rule": [{"role": ["fprop", "dgrad"], "prune": "weight", "format": "2:4",
                                   "method": "transposable", "refresh": 4}]}  # fmt: skip
    rows: list[Any] = []
    losses = []
    for with_meter in (False, True):
        torch._dynamo.reset()
        model = net()
        run = compiled(model, Policy.resolve(kept))
        meter = nmcompile.telemetry(run, every=2, to=rows.extend) if with_meter else None
        losses.append(train(run, meter))
    assert losses[0] == losses[1]
    flips = {s: [row["flips"] for row in rows if row["step"] == s] for s in (2, 4, 6)}
    assert {row["role"] for row in rows} == {"fprop", "dgrad"}
    assert not any(flips[2] + flips[6])  # the same masks
    assert any(flips[4])  # taken anew

"""``nmcompile.tune``: what it promises, that it changes nothing, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nmcompile
from nmcompile import ArgumentError, NMError, OptionError, Policy, Tuned
from nmcompile.gemm import Role
from nmcompile.tuning.measure import Measurements
from tests.execution.gpus import H200
from tests.tuning.nets import Blocks, Classifier, images, vectors

pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> Blocks:
    return Blocks()


@pytest.fixture
def tuned(model: Blocks) -> Tuned:
    return nmcompile.tune(model, vectors(), flops=0.5)


def test_the_policy_prunes_what_was_asked_for_and_nothing_else(model: Blocks, tuned: Tuned) -> None:
    assert tuned.pruned_share >= 0.5
    policy = Policy.loads(tuned.to_toml())
    report = nmcompile.explain(model, *vectors(1)[0], policy=policy)
    assert report.totals.pruned_share == pytest.approx(tuned.pruned_share)
    assert report.unused_rules == ()
    chosen = {(r.module, r.role): r.choice for r in tuned.rows}
    for site in report.sites:
        choice = chosen[site.module, site.role]
        assert (site.pruned, site.format) == (
            (None, None) if choice is None else (choice.prune, choice.format)
        )


def test_the_cheapest_products_for_their_gain_are_taken(tuned: Tuned) -> None:
    taken = [c.loss / c.gain for row in tuned.rows if (c := row.choice)]
    left = [row.costs[0].loss / row.costs[0].gain for row in tuned.rows if row.chosen is None]
    assert max(taken) <= min(left)


def test_what_is_measured_is_the_loss_of_the_compiled_policy() -> None:
    model, batches = Blocks(), vectors()
    tuned = nmcompile.tune(model, batches, flops=0.3, prune=["activation"])
    options = {"policy": tuned.policy}
    compiled = torch.compile(model, backend="nm_sparse", options=options)
    increase = sum((compiled(*b) - model(*b)).item() for b in batches) / len(batches)
    assert tuned.measured_loss == pytest.approx(increase, abs=1e-5)
    assert tuned.noise == 0


def test_a_budget_of_loss_is_kept() -> None:
    batches = vectors(4)
    everything = nmcompile.tune(Blocks(), batches, flops=1.0)
    assert everything.measured_loss is not None
    budget = everything.noise * everything.noise_cost / 2
    tuned = nmcompile.tune(Blocks(), batches, loss=budget)
    spent = tuned.noise * tuned.noise_cost + (tuned.measured_loss or 0.0)
    assert 0 < spent <= budget
    assert 0 < tuned.pruned_share < 1


def test_three_formats_take_six_passes_at_most() -> None:
    tuned = nmcompile.tune(Blocks(), vectors(), flops=0.5, formats=["2:4", "1:2", "4:8"])
    assert tuned.passes <= 6
    assert all(len(row.costs) == 3 for row in tuned.rows if row.module != "head")
    for row in tuned.rows:  # of equal gains the cheapest
        assert row.choice in (None, min(row.costs, key=lambda c: c.loss, default=None))


def test_nothing_of_the_model_changes() -> None:
    """Bit for bit: parameters, gradients, buffers, modes, random state; no hook fires."""
    model = Classifier()
    model.norm.eval()
    batches = images()
    model(*batches[0]).backward()
    fired = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: fired.append(p))

    def state() -> dict[str, Any]:
        gradients = {n: p.grad for n, p in model.named_parameters()}
        return {
            **{k: v.clone() for k, v in model.state_dict().items()},
            **{f"{n}.grad": g.clone() for n, g in gradients.items() if g is not None},
            "modes": [m.training for m in model.modules()],
            "random": torch.get_rng_state(),
            "ids": [id(t) for t in (*model.parameters(), *model.buffers())],
            "grad ids": [id(g) for g in gradients.values()],
            "enabled": torch.is_grad_enabled(),
        }

    before = state()
    nmcompile.tune(model, batches, flops=0.5)
    after = state()
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name
    assert fired == []


def test_equal_calls_give_equal_results() -> None:
    model, batches = Classifier(), images()
    one, two = (nmcompile.tune(model, batches, flops=0.5) for _ in range(2))
    assert one == two


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, state = Classifier(), images(4), tmp_path / "state"
    whole = nmcompile.tune(model, batches, flops=0.5)
    measured: list[float] = []

    def cut(self: Measurements, loss: float) -> str:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(loss)
        return end_batch(self, loss)

    end_batch = Measurements.end_batch
    monkeypatch.setattr(Measurements, "end_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        nmcompile.tune(model, batches, flops=0.5, state=state)
    monkeypatch.setattr(Measurements, "end_batch", end_batch)
    assert len(torch.load(state, weights_only=True)["losses"]) == 2
    again = nmcompile.tune(model, batches, flops=0.5, state=state)
    assert again.rows == whole.rows
    assert again.measured_loss == whole.measured_loss


def test_another_budget_needs_no_second_measurement(tmp_path: Path) -> None:
    model, batches, state = Blocks(), vectors(), tmp_path / "state"
    nmcompile.tune(model, batches, flops=0.2, state=state)
    before = state.read_bytes()
    tuned = nmcompile.tune(model, batches, flops=0.6, state=state)
    assert state.read_bytes() == before
    assert tuned.pruned_share >= 0.6


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    state, batches = tmp_path / "state", vectors()
    nmcompile.tune(Blocks(), batches, flops=0.2, state=state)
    for change in (
        lambda: nmcompile.tune(Blocks(), batches, flops=0.2, state=state),  # other weights
        lambda: nmcompile.tune(Blocks(), vectors(), flops=0.2, state=state),
        lambda: nmcompile.tune(Blocks(), batches, flops=0.2, state=state, formats=["1:2"]),
    ):
        with pytest.raises(NMError, match="was measured on another model, other batches"):
            change()
    state.write_bytes(b"nonsense")
    with pytest.raises(NMError, match="is no state of nmcompile tune"):
        nmcompile.tune(Blocks(), batches, flops=0.2, state=state)


def test_frozen_layers_are_left_dense() -> None:
    """What has no gradient has no measured cost."""
    model = Blocks()
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    tuned = nmcompile.tune(model, vectors(), flops=0.1)
    first = [r for r in tuned.rows if r.module.startswith("blocks.0") and r.role is Role.FPROP]
    assert all(r.chosen is None and "cannot be measured" in r.reason for r in first)
    report = nmcompile.explain(model, *vectors(1)[0], policy=tuned.policy)
    assert not any(s.pruned for s in report.sites if s.module.startswith("blocks.0"))


def test_a_target_chooses_what_runs_sparse_there() -> None:
    net = nn.Sequential(nn.Linear(4096, 4096), nn.GELU(), nn.Linear(4096, 24)).to(torch.bfloat16)
    batches = [(torch.randn(1024, 4096, dtype=torch.bfloat16),) for _ in "ab"]

    def loss(x: Tensor) -> Tensor:
        return net(x).float().square().mean()

    tuned = nmcompile.tune(loss, batches, flops=0.1, target=H200, prune=["activation"])
    report = nmcompile.explain(loss, *batches[0], policy=tuned.policy, target=H200)
    assert tuned.target == "h200"
    assert {s.execution for s in report.sites if s.pruned} == {"sparse"}
    saved = sum((s.dense_us or 0.0) - (s.sparse_us or 0.0) for s in report.sites if s.pruned)
    assert tuned.gain * 1e6 == pytest.approx(saved)


def test_in_cuda_graphs_nothing_waits_for_the_host() -> None:
    net = nn.Sequential(nn.Linear(4096, 4096), nn.GELU(), nn.Linear(4096, 24)).to(torch.bfloat16)
    batches = [(torch.randn(1024, 4096, dtype=torch.bfloat16),) for _ in "ab"]
    assert H200.figures is not None
    setup = H200.figures.setup.model_copy(update={"value": 10e-3})
    figures = H200.figures.model_copy(update={"setup": setup})
    slow = H200.model_copy(update={"figures": figures})

    def tune(cuda_graphs: bool) -> Tuned:
        how = {"flops": 0.1, "target": slow, "prune": ["activation"], "cuda_graphs": cuda_graphs}
        return nmcompile.tune(lambda x: net(x).float().square().mean(), batches, **how)

    with pytest.raises(NMError, match=r"with CUDA graphs .* it would run sparse"):
        tune(cuda_graphs=False)
    assert "h200 in CUDA graphs" in tune(cuda_graphs=True).to_toml()


def test_a_loss_outside_of_the_model() -> None:
    """The paths of the policy are those of the model, which is compiled without its loss."""
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))

    def step(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    batches = vectors()
    outside = nmcompile.tune(net, batches, step=step, flops=0.5)
    report = nmcompile.explain(net, batches[0][0], policy=outside.policy)
    assert report.totals.pruned_share == pytest.approx(outside.pruned_share)
    assert {row.module for row in outside.rows} == {"0", "2"}
    whole = nmcompile.tune(lambda x, y: F.cross_entropy(net(x), y), batches, flops=0.5)
    costs = [[c.loss for r in tuned.rows for c in r.costs] for tuned in (outside, whole)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    with pytest.raises(ArgumentError, match="step = 3: write a function"):
        nmcompile.tune(net, batches, step=3, flops=0.5)  # type: ignore[arg-type]


def test_outputs_that_have_a_loss() -> None:
    net = nn.Linear(8, 8)

    def named(x: Tensor) -> dict[str, Tensor]:
        return {"loss": net(x).square().mean(), "logits": net(x)}

    batches = [{"x": torch.randn(6, 8)} for _ in range(2)]
    assert nmcompile.tune(named, batches, flops=0.1).pruned_share >= 0.1


def bad_batches() -> Iterator[Any]:
    """An iterable that is none of batches."""
    yield torch.randn(3)


@pytest.mark.parametrize(
    ("keys", "error", "sentence"),
    [
        ({}, OptionError, "tune needs one budget"),
        ({"flops": 0.5, "loss": 0.1}, OptionError, "tune needs one budget"),
        ({"flops": 1.5}, OptionError, "flops = 1.5: write a share of the FLOPs"),
        ({"loss": -1}, OptionError, "loss = -1: write a loss"),
        ({"loss": "x"}, OptionError, "loss = 'x': write a loss"),
        ({"flops": 0.5, "formats": "2:4"}, ArgumentError, "write a list"),
        ({"flops": 0.5, "formats": ["4:2"]}, ValueError, "4:2"),
        ({"flops": 0.5, "formats": []}, ArgumentError, "at least one word"),
        ({"flops": 0.5, "prune": ["activations"]}, OptionError, "did you mean 'activation'"),
        ({"flops": 0.5, "target": "h10"}, OptionError, "did you mean 'h100'"),
        ({"flops": 0.5, "noise_cost": -1}, OptionError, "noise_cost = -1"),
        ({"loss": 1e-12}, NMError, "cannot be kept: the least"),
        ({"flops": 0.9, "prune": ["activation"]}, NMError, "flops = 0.9 cannot be reached"),
    ],
)
def test_what_is_refused(
    model: Blocks, keys: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        nmcompile.tune(model, vectors(2), **keys)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (torch.randn(3, 16), "batches are a Tensor"),
        ([torch.randn(3, 16)], "batch 0 is a Tensor: write a tuple"),
        (bad_batches(), "batch 0 is a Tensor"),
        ([(torch.randn(3, 16), torch.zeros(3).long())], "1 batches: tune needs at least 2"),
        (3, "batches are a int"),
        ([(torch.zeros(3, 16), torch.zeros(3).long())] * 2, "batches 0 and 1 are equal"),
    ],
)
def test_batches_that_are_none(model: Blocks, batches: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        nmcompile.tune(model, batches, flops=0.5)


def test_models_that_cannot_be_tuned() -> None:
    net, x = nn.Linear(8, 8), torch.randn(4, 8)
    two = [(x,), (x + 1,)]
    with pytest.raises(ArgumentError, match=r"gives a tensor of shape \(4, 8\)"):
        nmcompile.tune(net, two, flops=0.5)
    with pytest.raises(ArgumentError, match="gives 'tuple', and tune needs its loss"):
        nmcompile.tune(lambda x: (net(x).sum(), x), two, flops=0.5)
    with pytest.raises(NMError, match="the loss has no gradient"):
        nmcompile.tune(lambda x: net(x).sum().detach(), two, flops=0.5)
    with pytest.raises(NMError, match="no product of a backward was found"):
        nmcompile.tune(_norm(), two, flops=0.5)
    with pytest.raises(NMError, match=r"nothing of the model can be pruned.*fewer than M = 32"):
        nmcompile.tune(lambda x: net(x).sum(), two, flops=0.5, prune=["weight"], formats=["9:32"])
    with pytest.raises(ArgumentError, match="takes a module or a function, not 3"):
        nmcompile.tune(3, two, flops=0.5)  # type: ignore[arg-type]
    with torch.device("meta"), pytest.raises(ArgumentError, match="on the meta device"):
        nmcompile.tune(nn.Linear(8, 8), two, flops=0.5)


def _norm() -> Any:
    norm = nn.LayerNorm(8)
    return lambda x: norm(x).square().sum()


def test_a_batch_with_nan_is_named() -> None:
    batches = vectors(3)
    batches[1][0][0, 0] = float("nan")
    with pytest.raises(NMError, match="the loss of batch 1 is nan: leave the batch out"):
        nmcompile.tune(Blocks(), batches, flops=0.5)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    net = nn.Linear(8, 8)
    batches = [(torch.randn(4, 8),), (torch.zeros(4, 8),)]
    with torch.no_grad():
        net.bias.zero_()

    def loss(x: Tensor) -> Tensor:
        return net(x).norm(dim=1).sqrt().sum()  # of zero, without a slope

    with pytest.raises(NMError, match=r"batch 1: the gradient at .* is not finite"):
        nmcompile.tune(loss, batches, flops=0.5)

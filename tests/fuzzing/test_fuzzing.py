"""The generator, the simulation and the shrinker, and that a bug which is put in is found."""

from __future__ import annotations

import io
import os
import random
import runpy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fuzzing.checks
import nmcompile.graph.find_gemms
import nmcompile.graph.grouped
import nmcompile.inductor.interpreter
import nmcompile.passes.prune_products
from fuzzing import supervisor
from fuzzing.builder import Scope, finish
from fuzzing.campaign import Summary, record_dead, run_seed, seeds
from fuzzing.case import Case, Find
from fuzzing.checks import check
from fuzzing.execute import gradients, run
from fuzzing.functions import register_fallback
from fuzzing.generate import generate
from fuzzing.network import DTYPES, Input, Network, Program, load
from fuzzing.policies import DETERMINISTIC, UNBIASED, policy_of
from fuzzing.rounding import tolerances
from fuzzing.script import write_script
from fuzzing.shrink import shrink
from fuzzing.simulation import Simulation
from fuzzing.supervisor import Run
from nmcompile.graph.aten import argument
from nmcompile.inductor.interpreter import PlannedInterpreter
from nmcompile.masks import reference
from nmcompile.ops.schemas import Prune
from nmcompile.passes.plan import Decision, Plan, Simulated

SEEDS = range(24)


def test_a_seed_is_always_the_same_network_and_policy() -> None:
    a, b = Case.of(7), Case.of(7)
    assert a == b
    assert a.network.render() == b.network.render()
    assert Case.of(8) != a


def test_networks_are_varied_and_run_in_eager() -> None:
    networks = [generate(seed) for seed in SEEDS]
    ops = {op.split("_")[0] for network in networks for op in network.ops}
    assert {"linear", "weight product", "attention", "in place", "block", "cast"} <= ops
    assert any(op.lower().startswith("conv") for op in ops)
    for network in networks:
        assert all(r is None or bool(r.isfinite().all()) for r in run(load(network)))


def test_the_wide_form_has_the_same_numbers_in_float64() -> None:
    network = next(n for n in map(generate, SEEDS) if "BF16" in n.render().split("class Net")[1])
    native, wide = load(network), load(network, wide=True)
    for a, b in zip(native.model.parameters(), wide.model.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)


def test_policies_are_accepted_by_the_package() -> None:
    for seed in SEEDS:
        policy_of(Case.of(seed).rules)


def test_a_statement_that_fails_leaves_nothing_behind() -> None:
    scope = Scope(random.Random(0), "v")
    scope.input("x", torch.randn(2, 3))
    held = (("fc", "nn.Linear(5, 4)"),)
    assert scope.add("linear", "{out} = self.fc({0})", "x", held=held) is None
    assert not hasattr(scope.module, "fc")
    assert scope.statements == []


def test_simulation_names_every_product() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Tanh(), nn.Linear(4, 8))
    x = torch.randn(16, 8)
    simulation = Simulation(model, [x], [{"prune": "gradient", "format": "2:4", "method": "mse"}])
    program = Program(model, [x])
    with simulation.paths(), simulation:
        simulation.backward(program, [model(x)], gradients)
    found = sorted((p.path, p.role, p.pruned, p.rule) for p in simulation.products)
    assert found == [
        ("0", "fprop", None, None),
        ("0", "wgrad", "gradient", 1),
        ("2", "dgrad", "gradient", 1),
        ("2", "fprop", None, None),
        ("2", "wgrad", "gradient", 1),
    ]


def test_tolerances_hold_eager_and_no_more() -> None:
    network = next(n for n in map(generate, SEEDS) if "BF16" in n.render().split("class Net")[1])
    expected = run(load(network, wide=True))
    allowed = tolerances(network, expected)
    for found, e, limit in zip(run(load(network)), expected, allowed, strict=True):
        if found is not None and e is not None and limit is not None:
            assert bool(((found.double() - e).abs() <= limit).all())
            assert bool((limit <= 0.5 * e.abs().max() + 0.5).all()), "it would allow anything"


# -- bugs that are put in ------------------------------------------------------------------------


def mask_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(plan: Plan, d: Decision) -> Simulated:
        product = plan.products[d.site]
        assert product.operand is not None
        operand = argument(product.node, product.operand.arg)
        return Simulated(product.node, operand, operand)

    monkeypatch.delenv("NMCOMPILE_CHECK_PASSES")  # which would find it first
    monkeypatch.setattr(nmcompile.passes.prune_products, "simulated_product", unmasked)


def pass_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(plan: Any, d: Any) -> None:
        raise IndexError("put in")

    monkeypatch.setattr(nmcompile.passes.prune_products, "simulated_product", wrong)


def masked_by(wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """``nm.prune`` replaced by ``wrong``, with its arguments."""
    call = PlannedInterpreter.call_function

    def replaced(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.nm.prune.default:
            return wrong(*args)
        return call(self, target, args, kwargs)

    return lambda patch: patch.setattr(PlannedInterpreter, "call_function", replaced)


def the_smallest(x: Tensor, seed: Any, stream: int, n: int, m: int, dims: Any, how: str) -> Tensor:
    keep = reference.prune_and_mask(1 / x, None, 0, n, m, dims, how)[1]
    return torch.where(keep, x, 0)


def too_large(x: Tensor, *args: Any) -> Tensor:
    return 1.1 * torch.ops.nm.prune(x, *args)


def product_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rounding of float32, where the policy is not dense."""
    call = PlannedInterpreter.call_function

    def replaced(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        result = call(self, target, args, kwargs)
        off = target is torch.ops.aten.addmm.default and not self.dense
        return result * (1 + 1e-7) if off else result

    monkeypatch.setattr(PlannedInterpreter, "call_function", replaced)


def no_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nmcompile.graph.find_gemms, "assign_roles", lambda found, *_: found)


def nothing_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nmcompile.passes.find, "find_skipped", lambda graph: [])


def dense_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {Prune.operator: (Prune, lambda call: call.x * (1 + 1e-12))}
    monkeypatch.setattr(nmcompile.inductor.interpreter, "_DENSE", wrong)


BUGS = [
    (mask_left_out, "graph", "mse"),
    (pass_raises, "crash", "mse"),
    (masked_by(the_smallest), "N:M", "mse"),
    (masked_by(lambda x, *_: x), "N:M", "mse"),
    (product_is_off, "masks", "mse"),
    (masked_by(too_large), "expectation", "mvue"),
    (no_roles, "products", "mse"),
    (nothing_skipped, "skipped", "mse"),
    (dense_is_not, "dense", "mse"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "name", "method"), BUGS, ids=[name for _, name, _ in BUGS])
def test_each_check_fails_where_it_should(
    bug: Any, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = four_layers(method)
    check(case)
    bug(monkeypatch)
    with pytest.raises(Find) as found:
        check(case)
    assert found.value.check == name
    assert not found.value.upstream


@pytest.mark.slow
def test_what_inductor_alone_cannot_run_is_upstream_s(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(four_layers("mse"), seed=1, compiled=True)  # an odd seed: against Inductor
    ours = fuzzing.checks.run_compiled

    def fails(program: Program, backend: str, *policy: Any) -> Any:
        if backend == "inductor":
            raise RuntimeError("some elements refer to a single memory location")
        return ours(program, backend, *policy)

    monkeypatch.setattr(fuzzing.checks, "run_compiled", fails)
    with pytest.raises(Find, match="Inductor alone raises RuntimeError: some elements") as found:
        check(case)
    assert found.value.upstream


@pytest.mark.slow
def test_a_wrong_result_that_pytorch_refuses_to_compute_is_upstream_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense_is_not(monkeypatch)

    def refuses(program: Program, backend: str, *policy: Any) -> Any:
        raise RuntimeError("modified by an inplace operation")

    monkeypatch.setattr(fuzzing.checks, "run_compiled", refuses)
    with pytest.raises(Find, match="decomp_partition raises RuntimeError") as found:
        check(four_layers("mse"))
    assert found.value.upstream


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "name", "method"), BUGS[:3], ids=[name for _, name, _ in BUGS[:3]])
def test_a_bug_is_made_small_and_written_as_a_script(
    bug: Any, name: str, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bug(monkeypatch)
    small = shrink(four_layers(method), seconds=300)
    assert isinstance(small.network, Network)
    assert len(small.network.ops) == 1
    assert len(small.rules) == 1
    script = write_script(small, "put in", tmp_path)
    with pytest.raises(Find, match=name):
        runpy.run_path(str(script), run_name="__main__")
    monkeypatch.undo()
    runpy.run_path(str(script), run_name="__main__")  # without the bug it passes


def blocks_straddle_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    found = nmcompile.graph.grouped._operand

    def whole(kind: Any, arg: str, dim: int, value: Tensor, offsets: str | None = None) -> Any:
        return found(kind, arg, dim, value)

    monkeypatch.setattr(nmcompile.graph.grouped, "_operand", whole)


def groups_start_late(monkeypatch: pytest.MonkeyPatch) -> None:
    call = PlannedInterpreter.call_function

    def replaced(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.nm.prune_ragged.default:
            args = (args[0], args[1] + 1, *args[2:])
        return call(self, target, args, kwargs)

    monkeypatch.setattr(PlannedInterpreter, "call_function", replaced)


@pytest.mark.parametrize("of", ["transformers", "torch"])
@pytest.mark.parametrize(
    ("bug", "name"), [(blocks_straddle_groups, "graph"), (groups_start_late, "N:M")]
)
def test_blocks_of_groups_are_checked(
    bug: Any, name: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third group begins in the middle of a block, the second one is empty."""
    case = experts(of)
    tally = check(case)
    assert tally.checks["products"] == 1
    assert tally.checks["masks"] == (of == "transformers")
    bug(monkeypatch)
    with pytest.raises(Find) as found:
        check(case)
    assert found.value.check == name


def experts(of: str) -> Case:
    """Two layers of three experts, of which one gets no token; two tokens are left out."""
    scope = Scope(random.Random(0), "v")
    register_fallback()
    dtype = {"transformers": "F64", "torch": "BF16"}[of]
    scope.input("x0", torch.randn(11, 8, requires_grad=True).to(DTYPES[dtype]))
    function = {"transformers": "torch.ops.transformers.grouped_mm_fallback", "torch": "grouped_mm"}
    offs = "torch.tensor([6, 6, 9], dtype=torch.int32)"
    rows = ".masked_fill((torch.arange(11) >= 9)[:, None], 0)"
    code = "{out} = {0}" + rows
    for name in ("w1", "w2"):
        code += f"; {{out}} = {function[of]}({{out}}, self.{name}, {offs}){rows}.tanh()"
    held = tuple((n, f"nn.Parameter(torch.randn(3, 8, 8).to({dtype}))") for n in ("w1", "w2"))
    assert scope.add("grouped product", code, "x0", held=held)
    made = f"torch.randn(11, 8, generator=g).to({dtype})"
    network = finish(scope, [Input("x0", made, requires_grad=True)], [], 0)
    assert network is not None
    return Case(0, network, [{"prune": "gradient", "format": "2:4", "method": "mse"}])


def four_layers(method: str) -> Case:
    """Two linear layers, an attention and a view."""
    scope = Scope(random.Random(0), "v")
    scope.input("x0", torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True))
    for name, op in ("fc1", "{out} = self.fc1({0}).tanh()"), ("fc2", "{out} = self.fc2({0}) + {0}"):
        held = ((name, "nn.Linear(8, 8, dtype=F64)"),)
        assert scope.add("linear", op, list(scope.values)[-1], held=held)
    attention = "{out} = F.scaled_dot_product_attention({0}[None], {0}[None], {0}[None])"
    assert scope.add("attention", attention, "v2")
    assert scope.add("view", "{out} = {0}.mT", "v3")
    inputs = [Input("x0", "torch.randn(2, 4, 8, generator=g).to(F64)", requires_grad=True)]
    network = finish(scope, inputs, [], 0)
    assert network is not None
    prune = {"mse": "activation", "mvue": "gradient"}[method]
    rules = [
        {"class": "Conv2d", "dense": True},
        {"prune": prune, "format": "2:4", "method": method},
    ]
    return Case(0, network, rules, {"mse": DETERMINISTIC, "mvue": UNBIASED}[method])


def test_a_seed_that_kills_the_process_is_recorded_and_left(tmp_path: Path) -> None:
    summary = Summary.at(tmp_path, 0, 0.0)
    assert record_dead(summary, tmp_path, -11).startswith("FIND")
    again = Summary.at(tmp_path, 0, 0.0)
    assert again.next_seed == 1
    assert list(again.finds) == ["0"]


def dies_at_seed_1(channel: Any, run: Run) -> None:
    summary = Summary.at(run.finds, run.seed, run.compiled_share)
    for seed in seeds(summary, run.count, run.minutes):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        summary.networks, summary.next_seed = summary.networks + 1, seed + 1
        summary.save(run.finds)
        channel.send((summary.networks, f"checked {seed}"))


def fails_at_once(channel: Any, run: Run) -> None:
    raise ValueError("outside of any case")


@pytest.mark.slow
def test_a_run_goes_on_after_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WORKER", dies_at_seed_1)
    run = Run(count=4, minutes=None, compiled_share=0, seed=0, finds=tmp_path, shrink_seconds=0)
    console = Console(file=io.StringIO(), width=120)
    supervisor.supervise(run, console)
    assert Summary.at(tmp_path, 0, 0).networks == 4
    assert Summary.at(tmp_path, 0, 0).finds == {"1": "died: exit code -11"}
    printed = console.file.getvalue()
    assert [f"checked {seed}" in printed for seed in range(4)] == [True, False, True, True]
    assert "FIND: the process died at seed 1 (-11)" in printed
    monkeypatch.setattr(supervisor, "WORKER", fails_at_once)
    with pytest.raises(RuntimeError, match="failed outside of any case"):
        supervisor.supervise(run, console)


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    summary = Summary.at(tmp_path, SEEDS.start, 0.0)
    for seed in seeds(summary, len(SEEDS), None):
        line = run_seed(summary, seed, tmp_path, shrink_seconds=0)
        assert line is None or line.startswith("upstream"), line
    assert summary.networks == len(SEEDS)
    assert summary.pruned_products > 50
    assert summary.checks["masks"] > 3
    assert summary.checks["expectation"] > 2
    again = Summary.at(tmp_path, SEEDS.start, 0.0)
    assert again == summary, "a run goes on where it stopped"
    assert list(seeds(again, len(SEEDS), None)) == []

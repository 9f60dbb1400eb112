"""Every comparison of a case, in order; each raises ``Find``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import nmcompile
from fuzzing.case import Case, Find, Tally
from fuzzing.compare import Bounds, compare_expectation, compare_masked, or_zeros
from fuzzing.execute import (
    PlannedNetwork,
    Results,
    each_run,
    gradients,
    multiplies,
    names_of_skipped,
    run,
    run_compiled,
)
from fuzzing.graphs import check_masks_in_graphs
from fuzzing.masks import groups_of, is_pruned, keep
from fuzzing.network import Network, load
from fuzzing.policies import DETERMINISTIC, UNBIASED, policy_of
from fuzzing.products import form
from fuzzing.rounding import dtypes, tolerances
from fuzzing.simulation import Simulation
from nmcompile.reason import Code

#: AOTAutograd with Inductor's decompositions and partitioner, and nothing of ours.
PLAIN = "aot_eager_decomp_partition"


class Unjudged(Exception):
    """A case that the checks cannot judge; the reason is counted."""


def check(case: Case) -> Tally:
    """Make every check that fits the case.

    Raises:
        Find: the first one that fails.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = Tally()
        tally.checks["symbolic sizes"] += case.dynamic
        try:
            (_check_compiled if case.compiled else _check_planned)(case, tally)
        except Unjudged as reason:
            tally.checks[str(reason)] += 1
    return tally


def _check_planned(case: Case, tally: Tally) -> None:
    network = case.network
    expected = run(load(network, wide=True, checkpoints=False))
    simulation, simulated = simulate(case)
    planned = PlannedNetwork(load(network), policy_of(case.rules), case.dynamic)
    try:
        dense = planned.run(dense=True)
    except Exception as error:
        raise _crash(case, error, PLAIN) from error
    allowed = tolerances(network, expected)
    _compare_dense(case, dense, expected, allowed, tally)
    _compare_products(case, simulation, planned.sites, planned.skipped, tally)
    watched = _Watch()
    planned.interpreter.watch = staticmethod(watched)
    try:
        found = planned.run()
    except Find:
        raise
    except Exception as error:
        raise Find("crash", f"{type(error).__name__}: {error}") from error
    planned.interpreter.watch = None
    tally.checks["N:M"] += watched.count
    check_masks_in_graphs(planned.graphs, planned.sites)
    tally.checks["graph"] += len(planned.sites)
    if dtypes(network) != {torch.float64} or _incomplete(planned.sites):
        return
    again = lambda: simulate(case)[1]  # noqa: E731
    if case.kind == DETERMINISTIC:
        compare_masked("masks", found, simulated, allowed, again, tally)
    elif case.kind == UNBIASED:
        compare_expectation(planned, simulated, again, tally)


def _check_compiled(case: Case, tally: Tally) -> None:
    network = case.network
    try:
        if case.seed % 2:
            ours = _seeded(lambda: run_compiled(load(network), "nm_sparse", _DENSE))
        else:
            ours = _seeded(lambda: run_compiled(load(network), "nm_sparse", policy_of(case.rules)))
            report = nmcompile.last_report()
    except Exception as error:
        raise _crash(case, error, "inductor") from error
    if case.seed % 2:
        try:
            theirs = _seeded(lambda: run_compiled(load(network), "inductor"))
        except Exception as error:
            text = f"Inductor alone raises {type(error).__name__}: {error}"
            raise Find("compiled dense", text, upstream=True) from error
        tally.checks["compiled dense"] += 1
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not _identical(a, b):
                text = f"result {i} differs from Inductor's in some bit"
                raise Find("compiled dense", text, upstream=_is_wrong(network, theirs))
        return
    simulation, simulated = simulate(case)
    skipped = names_of_skipped(each_run(report.graphs, "skipped"))
    _compare_products(case, simulation, each_run(report.graphs, "sites"), skipped, tally)
    exact = dtypes(network) == {torch.float64} and not _incomplete(report.sites)
    if exact and case.kind == DETERMINISTIC:
        expected = run(load(network, wide=True, checkpoints=False))
        allowed = tolerances(network, expected)
        again = lambda: simulate(case)[1]  # noqa: E731
        compare_masked("compiled masks", ours, simulated, allowed, again, tally)


_DENSE = nmcompile.Policy.recipe("dense")


def _seeded(function: Any) -> Any:
    torch.manual_seed(0)
    return function()


def _identical(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def simulate(case: Case) -> tuple[Simulation, Results]:
    """The same in eager mode; random masks are left out."""
    program = load(case.network, checkpoints=False)
    simulation = Simulation(program.model, program.inputs, case.rules, expected=True)
    with simulation.paths(), simulation:
        outputs = program.model(*program.inputs)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        values = [y.detach().clone() for y in outputs]
        return simulation, [*values, *simulation.backward(program, outputs, gradients)]


def _crash(case: Case, error: Exception, plain: str) -> Find:
    """An exception is the package's unless the same happens without it."""
    text = f"{type(error).__name__}: {str(error).strip()[:600]}"
    try:
        run_compiled(load(case.network), plain, dynamic=case.dynamic)
    except Exception as other:
        return Find("crash", f"{text}; {plain}: {type(other).__name__}", upstream=True)
    return Find("crash", text)


def _compare_dense(
    case: Case, found: Results, expected: Results, allowed: Bounds, tally: Tally
) -> None:
    tally.checks["dense"] += 1
    wrong = _first_beyond(found, expected, allowed)
    if wrong is None:
        return
    if _first_beyond(run(load(case.network)), expected, allowed) is not None:
        tally.checks["dense: eager itself is further from float64 than estimated"] += 1
        return
    try:
        plain = run_compiled(load(case.network), PLAIN)
    except Exception as error:  # a value that it saved has been written over, say
        text = f"{wrong}; {PLAIN} raises {type(error).__name__}"
        raise Find("dense", text, upstream=True) from error
    raise Find("dense", wrong, upstream=_first_beyond(plain, expected, allowed) is not None)


def _is_wrong(network: Network, found: Results) -> bool:
    """Whether rounding does not explain how far results are from those in float64."""
    expected = run(load(network, wide=True, checkpoints=False))
    return _first_beyond(found, expected, tolerances(network, expected)) is not None


def _first_beyond(found: Results, expected: Results, allowed: Bounds) -> str | None:
    for i, (a, b, limit) in enumerate(zip(found, expected, allowed, strict=True)):
        a, b = or_zeros(a, b), or_zeros(b, a)
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            return f"result {i} has the shape {list(a.shape)}, eager's is {list(b.shape)}"
        off = (a.double() - b.double()).abs()
        bound = torch.zeros_like(off) if limit is None else limit
        if not bool((off <= bound).all()):
            return f"result {i} is off by {float(off.max()):.3g}, bound {float(bound.max()):.3g}"
    return None


def _compare_products(
    case: Case, simulation: Simulation, sites: Sequence[Any], skipped: Sequence[str], tally: Tally
) -> None:
    if any(s.guess for s in sites) or not all(p.followed for p in simulation.products):
        _compare_pruned(case, simulation, sites, tally)
        raise Unjudged("products: roles that the simulation does not follow, what is pruned alone")
    if case.dynamic and simulation.has_short:
        raise Unjudged("products: shorter than a block, which symbolic sizes do not tell")
    sizes = not case.dynamic
    reported = Counter(_key(s, sizes) for s in sites)
    counted = Counter(p.key(sizes) for p in simulation.products)
    tally.checks["products"] += 1
    tally.products += len(sites)
    tally.pruned += sum(s.pruned is not None for s in sites)
    if reported != counted:
        _check_shapes(case, simulation)
        missing, extra = counted - reported, reported - counted
        lines = [*(f"not reported: {k}" for k in missing), *(f"only reported: {k}" for k in extra)]
        raise Find("products", "\n".join(lines))
    left = Counter(name.removeprefix("aten.") for name in skipped)
    if left != simulation.skipped:
        raise Find("skipped", f"reported {dict(left)}, counted {dict(simulation.skipped)}")


def _check_shapes(case: Case, simulation: Simulation) -> None:
    """What differs is nothing of ours where AOTAutograd and eager mode do (views that fold)."""
    if multiplies(load(case.network), case.dynamic) != simulation.multiplied:
        raise Unjudged("products: AOTAutograd multiplies other shapes than eager")


def _compare_pruned(case: Case, simulation: Simulation, sites: Sequence[Any], tally: Tally) -> None:
    """Every pruned operand is what the report says, and none is what nobody can tell."""
    sizes = not case.dynamic
    tally.checks["pruned operands"] += 1
    tally.products += len(sites)
    unknown = (0, 0, 0, 0)
    found = Counter(
        _operands(p.sizes if sizes else unknown, p.kinds, p.followed) for p in simulation.products
    )
    for s in (s for s in sites if s.pruned is not None):
        if s.guess is not None:
            raise Find("pruned operands", f"a guess is pruned: {s.module} {s.role}: {s.guess}")
        tally.pruned += 1
        kinds = (str(s.operands[0]), str(s.operands[1]))
        key = _operands(tuple(map(int, s.sizes)) if sizes else unknown, kinds, True)
        told = [k for k in (key, (*key[:-1], False)) if found[k] > 0]
        if not told:
            _check_shapes(case, simulation)
            text = f"no product has {kinds} at {s.sizes}: {s.module} {s.role}"
            raise Find("pruned operands", text)
        found[told[0]] -= 1


def _operands(sizes: tuple[int, ...], kinds: tuple[str, ...], followed: bool) -> tuple[Any, ...]:
    """A product by its sizes and what its operands hold; the same for its transpose."""
    batch, m, n, k = sizes
    return (*min(((m, n), kinds), ((n, m), kinds[::-1])), batch, k, followed)


def _key(site: Any, sizes: bool) -> tuple[Any, ...]:
    rule = int(site.rule.rsplit(" ", 1)[1]) if site.rule else None
    where = (site.module, site.module_class, str(site.op), str(site.role), site.dtype)
    kinds = (str(site.operands[0]), str(site.operands[1]))
    pruned = site.pruned and str(site.pruned)
    numbers = tuple(map(int, site.sizes)) if sizes else (0, 0, 0, 0)
    shape = form(str(site.op), numbers, kinds, pruned, site.dims)
    return (*where, *shape, rule, pruned, site.format, site.method)


def _incomplete(sites: Sequence[Any]) -> bool:
    """Whether a report says itself that ``backward = "exact"`` could not be had everywhere."""
    return any(s.has(Code.READS_UNPRUNED) for s in sites)


class _Watch:
    """Every pruned operand is N:M along its blocks, and what is kept is what must be.

    A block that is not finite is one of rows that belong to no group, of which nothing is said.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, target: Any, args: Any, result: Any) -> None:
        name = target._opname
        if name == "prune":
            x, _, _, n, m, dims, method = args
            self._check(x, result, n, m, dims, method)
        elif name == "prune_ragged":
            x, offsets, _, _, n, m, dim, method = args
            parts = groups_of(x, dim, offsets), groups_of(result, dim, offsets)
            for before, after in zip(*parts, strict=True):
                self._check(before, after, n, m, [dim], method)
        elif name == "compress":
            x, _, _, dims, n, m, method, layout = args
            for packed, dim in zip(result, dims, strict=True):
                rows = x if dim == 1 else x.t()
                dense = torch.ops.nm.decompress(packed, *rows.shape, layout)
                self._check(rows, dense, n, m, [1], method)

    def _check(self, x: Tensor, y: Tensor, n: int, m: int, dims: Any, method: str) -> None:
        self.count += 1
        finite = x.isfinite() & y.isfinite()
        x, y = torch.where(finite, x, 0), torch.where(finite, y, 0)
        for along in [[d] for d in dims] if method == "transposable" else [dims]:
            if not is_pruned(y, n, m, along):
                raise Find("N:M", f"{method} {n}:{m} along {along} of {list(x.shape)}")
        if method in ("mse", "transposable") and not bool(((y == x) | (y == 0)).all()):
            raise Find("N:M", f"{method} {n}:{m} changed a kept value")
        if method != "mse" or not bool(finite.all()):
            return
        if not torch.equal(y, torch.where(keep(x, n, m, dims), x, 0)):
            raise Find("N:M", f"{method} {n}:{m} along {dims} did not keep the largest")

"""``nmcompile.tune``: a policy by measurement, in a few batches."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from nmcompile._dynamo import closed_over, module_of
from nmcompile.dry_run import fresh
from nmcompile.errors import ArgumentError, NMError, OptionError, shown
from nmcompile.execution.targets import Target, named
from nmcompile.gemm import OperandKind, Role
from nmcompile.masks.formats import NMFormat
from nmcompile.policy.words import meant
from nmcompile.tuning.products import Choice, Key
from nmcompile.tuning.result import Tuned, curve_of, select, with_choices
from nmcompile.tuning.scores import Row, measured_terms, rows_of
from nmcompile.tuning.session import Batch, Session
from nmcompile.tuning.state import digest_of, has_values, untouched

#: Of the loss, where nobody says: what gradient noise as large as the mini-batch's own costs.
NOISE_COST = 0.1
#: How often a policy is checked, and made stricter, until it keeps a budget of loss.
_CHECKS = 3


def tune(
    model: Callable[..., Any],
    batches: Iterable[Batch],
    *,
    step: Callable[..., Any] | None = None,
    flops: float | None = None,
    loss: float | None = None,
    formats: Sequence[str] = ("2:4",),
    prune: Sequence[str] = ("activation", "gradient"),
    target: str | Target | None = None,
    cuda_graphs: bool = False,
    noise_cost: float | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Choose a policy by what pruning each product costs the loss, measured on a few batches.

    Every batch is run forward and backward once, operator by operator; each product is multiplied
    once more for every way to prune it. Then the batches run forward with everything pruned, and
    with what was chosen. How costs are computed, and from which sources: docs/tune.md.

    The model is measured as it is, in the mode that it is in; nothing of it is changed: no
    parameter, buffer, gradient, mode or random state. Tune in the middle of training: a model that
    has learnt nothing has nothing to lose.

    Args:
        model: a module or function, as ``torch.compile`` will compile it: paths of modules in the
            policy start here. Its result is the loss, if there is no ``step``: ``model(*batch)`` or
            ``model(**batch)`` is one number, or has it as ``.loss`` (or ``["loss"]``).
        step: the loss of a batch where it is computed outside of the model, from the model and the
            batch: ``lambda model, x, y: cross_entropy(model(x), y)``.
        batches: tuples or mappings of inputs, all of which are used; 4 to 8 are enough. At least
            two for gradients, whose variance between batches is needed.
        flops: prune products of at least this share of the FLOPs, 0 to 1, as cheaply as possible.
        loss: prune as much as possible, within this increase of the loss.
        formats: N:M formats to choose among.
        prune: operands to choose among: ``"activation"``, ``"weight"`` (fprop), ``"gradient"``
            (dgrad and wgrad).
        target: a name of ``nmcompile.targets()``, or one of your own: the gain is the time that
            its cost model predicts, and only what runs sparse there is pruned. None: the FLOPs left
            out.
        cuda_graphs: whether steps are replayed as CUDA graphs, where what a call of the sparse
            library takes the host does not count for a ``target``.
        noise_cost: the loss that gradient noise as large as the mini-batch's own is taken to cost
            (half the batch size has as much). None: a tenth of the loss.
        state: a file that keeps what has been measured; a run that was cut off goes on from it,
            and another budget needs no second measurement.
        progress: show a bar on stderr; None: where that is a terminal.

    Raises:
        ArgumentError: an argument that is no such thing, or a model that returns no loss.
        OptionError: an unknown target, operand or budget.
        FormatError: not an N:M format.
        NMError: a budget that cannot be reached, a loss or gradient that is not finite, a model
            without a training graph, or a state of another model.
    """
    budget = _budget(flops, loss)
    choices = _choices(formats, prune)
    place = None if target is None else named(target)
    if not isinstance(cuda_graphs, bool):
        raise OptionError(f"cuda_graphs is True or False, not {shown(cuda_graphs)}")
    plain = getattr(model, "_orig_mod", model)  # an already compiled module is measured afresh
    modules = _modules(plain)
    _check_place(modules)
    if step is not None and not callable(step):
        raise ArgumentError(
            f"step = {shown(step)}: write a function of the model and a batch that gives the loss, "
            "such as lambda model, x, y: cross_entropy(model(x), y)"
        )
    some = _batches(batches, any(c.kind is OperandKind.GRADIENT for c in choices))
    _check_noise(noise_cost)
    kept = None if state is None else Path(state)
    session = Session(fresh(plain), some, choices, place, cuda_graphs, step)
    with untouched(modules), _Progress(progress) as bar:
        bar.begin("measuring", len(some))
        session.measure(kept, bar.step)
        rows, terms, cost = _scored(session, noise_cost, bar)
        if not any(row.costs for row in rows):
            why = next((row.reason for row in rows if row.reason), "it has no products")
            raise NMError(f"nothing of the model can be pruned: {why}")
        picked, expected, measured = _select(session, rows, *budget, bar)
    passes = session.measured.sums.multiplied / (len(some) * _flops_of_a_pass(rows))
    done = [c for row in picked if (c := row.choice)]
    return Tuned(
        flops_budget=budget[0],
        loss_budget=budget[1],
        target=None if place is None else place.name,
        cuda_graphs=cuda_graphs,
        batches=len(some),
        passes=passes,
        base_loss=_mean(session.losses),
        terms=terms,
        noise_cost=cost,
        expected_loss=expected,
        measured_loss=measured,
        noise=math.fsum(c.noise for c in done if c.noise is not None),
        pruned_share=sum(r.flops for r in picked if r.choice) / sum(r.flops for r in picked),
        gain=math.fsum(c.gain for c in done),
        rows=picked,
        curve=curve_of(rows),
    )


def _scored(
    session: Session, noise_cost: float | None, bar: _Progress
) -> tuple[tuple[Row, ...], float, float]:
    """Rows with their costs; how many terms the loss has; and what noise costs."""
    found = session.measured
    cost = NOISE_COST * abs(_mean(session.losses)) if noise_cost is None else noise_cost
    everything: dict[Key, Choice] = {}
    for slot, choice in found.sums.moments:
        if slot.key.role is Role.FPROP:
            everything.setdefault(slot.key, choice)
    terms = None
    if everything:
        bar.begin("with all of the forward pruned", len(session.batches))
        increase = session.increase(everything, bar.step)
        moments = [
            m for (slot, c), m in found.sums.moments.items() if everything.get(slot.key) == c
        ]
        terms = measured_terms(moments, found.sums.batches, increase)
    if terms is None:  # pruning does no harm that could be measured: as many as there are rows
        terms = float(
            max((p.rows for p in found.found.products if p.gemm.role is Role.FPROP), default=1)
        )
    timed = session.target is not None
    return rows_of(found.found, found.sums, terms, cost, timed), terms, cost


def _select(
    session: Session,
    rows: tuple[Row, ...],
    flops: float | None,
    loss: float | None,
    bar: _Progress,
) -> tuple[tuple[Row, ...], float, float | None]:
    """Rows with what was chosen, and by how much the loss grows: expected and measured."""
    scale = 1.0
    for check in range(_CHECKS):
        picked = with_choices(rows, select(rows, flops, loss, scale))
        forward = {r.key: c for r in picked if (c := r.choice) and c.noise is None}
        expected = math.fsum(c.loss for c in forward.values())
        if not forward:
            return picked, 0.0, None
        bar.begin(f"with what was chosen ({check + 1})", len(session.batches))
        applied = {k: Choice(OperandKind(c.prune), c.format) for k, c in forward.items()}
        measured = session.increase(applied, bar.step)
        if not math.isfinite(measured):
            raise NMError(
                "with what was chosen pruned the loss is not finite: ask for less, or leave out "
                "formats that drop more"
            )
        noise = math.fsum(c.loss for r in picked if (c := r.choice) and c.noise is not None)
        if loss is None or measured + noise <= loss:
            break
        scale *= 1.1 * measured / expected if expected > 0 else 2.0
    else:
        raise NMError(
            f"loss = {loss:g} cannot be kept: what was expected to cost {expected:.3g} costs "
            f"{measured:.3g}; measure on more batches, or allow more"
        )
    return picked, expected, measured


def _flops_of_a_pass(rows: Sequence[Row]) -> float:
    return sum(row.flops for row in rows)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# -- arguments -----------------------------------------------------------------------------------


def _budget(flops: object, loss: object) -> tuple[float | None, float | None]:
    if (flops is None) is (loss is None):
        raise OptionError(
            "tune needs one budget: flops = 0.5 (the share of the FLOPs to prune) or loss = 0.05 "
            "(the increase of the loss to stay within)"
        )
    name, value = ("flops", flops) if loss is None else ("loss", loss)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    most = 1.0 if name == "flops" else math.inf
    if not number or not 0 < float(value) <= most or math.isinf(value):  # type: ignore[arg-type]
        example = "a share of the FLOPs, such as 0.5" if most == 1 else "a loss, such as 0.05"
        raise OptionError(f"{name} = {shown(value)}: write {example}")
    return (float(value), None) if name == "flops" else (None, float(value))  # type: ignore[arg-type]


def _choices(formats: object, prune: object) -> list[Choice]:
    for name, given, example in (
        ("formats", formats, '["2:4", "1:2"]'),
        ("prune", prune, '["activation", "gradient"]'),
    ):
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ArgumentError(f"{name} = {shown(given)}: write a list, such as {example}")
    forms = [str(NMFormat.parse(form)) for form in formats]  # type: ignore[attr-defined]
    kinds = []
    for word in prune:  # type: ignore[attr-defined]
        if word not in list(OperandKind):
            hint = meant("prune", str(word), map(str, OperandKind))
            raise OptionError(f"prune: {shown(word)} is no operand: {hint}")
        kinds.append(OperandKind(word))
    if not forms or not kinds:
        raise ArgumentError("formats and prune need at least one word each: nothing is to choose")
    return [Choice(kind, form) for kind in dict.fromkeys(kinds) for form in dict.fromkeys(forms)]


def _batches(batches: object, gradients: bool) -> list[Batch]:
    if isinstance(batches, (str, Tensor, Mapping)) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"batches are a {type(batches).__name__}: write a list of tuples or mappings of "
            "inputs, such as [(x, y), (x2, y2)]"
        )
    some = list(itertools.islice(batches, 10_000))
    for number, batch in enumerate(some):
        if not isinstance(batch, (tuple, list, Mapping)):
            raise ArgumentError(
                f"batch {number} is a {type(batch).__name__}: write a tuple or mapping of inputs "
                "(one input x is written (x,))"
            )
    if len(some) < 1 + gradients:
        raise ArgumentError(
            f"{len(some)} batches: tune needs at least {1 + gradients}"
            + (", to know how gradients vary between them" if gradients else "")
        )
    digests: dict[str, int] = {}
    for number, batch in enumerate(some):
        twin = digests.setdefault(digest_of(batch), number)
        if twin != number and gradients:
            raise ArgumentError(
                f"batches {twin} and {number} are equal: how gradients vary between batches is "
                "measured, so draw different ones"
            )
    return some


def _check_noise(noise_cost: object) -> None:
    number = isinstance(noise_cost, (int, float)) and not isinstance(noise_cost, bool)
    if noise_cost is not None and not (number and 0 <= float(noise_cost) < math.inf):  # type: ignore[arg-type]
        raise OptionError(f"noise_cost = {shown(noise_cost)}: write a loss, such as 0.1")


def _modules(model: Any) -> list[nn.Module]:
    """The modules that a call may change."""
    if not callable(model):
        raise ArgumentError(f"tune takes a module or a function, not {shown(model)}")
    known = [model, getattr(model, "__self__", None), *closed_over(model)]
    return [m for value in known if (m := module_of(value)) is not None]


def _check_place(modules: Sequence[nn.Module]) -> None:
    if not has_values(modules):
        raise ArgumentError(
            "the model is on the meta device or fake: tune measures, and needs its values "
            "(nmcompile.explain does not)"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise NMError(
            "tune runs in one process: tune before the process group is made, and give every rank "
            "the policy file"
        )


class _Progress:
    """A bar on stderr."""

    def __init__(self, wanted: bool | None) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        hidden = not console.is_terminal if wanted is None else not wanted
        self._bar = Progress(*columns, console=console, transient=True, disable=hidden)
        self._task: Any = None

    def __enter__(self) -> _Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def begin(self, what: str, count: int) -> None:
        """Something that takes so many steps."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=count)

    def step(self) -> None:
        self._bar.advance(self._task)

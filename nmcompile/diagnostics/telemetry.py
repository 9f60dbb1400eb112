"""``nmcompile.telemetry``: what the masks of a model do while it trains, now and then."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from nmcompile._dynamo import inside_wrappers
from nmcompile.backend import has_run
from nmcompile.diagnostics.figures import FIGURES, Sample
from nmcompile.diagnostics.writers import Row, Write, writer_to
from nmcompile.errors import ArgumentError, shown
from nmcompile.ops.observe import SAMPLES, site_of
from nmcompile.schedule.compiled import wrappers_of
from nmcompile.schedule.ranks import is_first


def telemetry(
    model: nn.Module | Callable[..., Any],
    every: int = 100,
    to: str | PathLike[str] | Callable[[Sequence[Row]], Any] | Any = None,
    *,
    all_ranks: bool = False,
) -> Meter:
    """Show what the masks of a compiled model do while it trains, in one of so many steps.

    Of each pruned product, by module and role: the share of the operand's energy that its mask
    keeps; of a random mask, the variance that it adds and the share of blocks that it keeps
    something of for certain; the cosine of the pruned and the dense weight gradient; of a weight's
    mask, the share of kept places that are new. ``docs/telemetry.md`` has the formulas.

    A sampled step is a step of the training: another version of the model, compiled beside the one
    that all other steps run, which computes the same bit for bit and shows what it prunes.

    Args:
        model: what ``torch.compile(model, backend="nm_sparse")`` returned, or a model that was
            compiled in place (``nmcompile.compile``, ``model.compile``, ``nmcompile.Schedule``),
            before its first call.
        every: how many steps from one sample to the next; the first step is one.
        to: where the rows of a sample go: the path of a CSV file, which is appended to; a
            TensorBoard writer, or anything with ``add_scalar(tag, value, step)``; a function of the
            list of rows, each a mapping; None: nowhere but ``rows``.
        all_ranks: let every process write, to a path of its own, and not the first one alone.

    Returns:
        The meter: call its ``step()`` after each step of the optimizer.

    Raises:
        ArgumentError: ``every`` or ``to`` is nothing of the kind; the model was never compiled with
            this backend, has run already, or has a meter.
        NMError: the file cannot be written, or is another table.
    """
    period = _whole(every, "every", "a number of steps from 1 on", 1)
    name = type(inside_wrappers(model)).__name__ if isinstance(model, nn.Module) else shown(model)
    wrappers = wrappers_of(model)
    if not wrappers:
        raise ArgumentError(
            f"{name} was never compiled with backend nm_sparse, so that there are no masks: give "
            "what torch.compile returned, or compile the model in place before "
            "(nmcompile.compile, nmcompile.Schedule)"
        )
    if any(_options(wrapper).get("nm.meter") in _alive for wrapper in wrappers):
        raise ArgumentError(f"{name} has a meter already: go on with that one, or close() it")
    if any(map(has_run, wrappers)):
        raise ArgumentError(
            f"{name} has run already, and was compiled without what a sample needs: call "
            "telemetry before its first call (and before warm_up), or torch._dynamo.reset() here, "
            "after which everything is compiled anew"
        )
    meter = Meter(period, None if to is None else writer_to(to), all_ranks)
    for wrapper in wrappers:
        # Dynamo compares options: no code of another model is taken for this one, nor the reverse.
        options = {**_options(wrapper), "nm.meter": meter.number}
        wrapper.kwargs = {**wrapper.kwargs, "options": options}
    return meter


def _options(wrapper: Any) -> dict[str, Any]:
    return dict(wrapper.kwargs.get("options") or {})


class Meter:
    """Takes samples of a model while it trains; ``nmcompile.telemetry`` makes it.

    The first step is sampled, and then the first one after every so many. A step in which the model
    did not run is none: the next one is sampled then.
    """

    def __init__(self, every: int, write: Write | None, all_ranks: bool) -> None:
        self._every, self._write, self._all_ranks = every, write, all_ranks
        self.number = next(_numbers)  # of this process
        self._steps = self._due = 0
        self._rows: tuple[Row, ...] = ()
        self._places: dict[str, list[Tensor]] = {}
        self._sample: Sample | None = None
        _alive[self.number] = self
        self._open_if_due()

    @property
    def steps(self) -> int:
        """How many steps are done."""
        return self._steps

    @property
    def rows(self) -> tuple[Row, ...]:
        """The newest sample: a mapping for each product, with None for a figure that it has not."""
        return self._rows

    def step(self, at: int | None = None) -> None:
        """Count one training step, after the optimizer's own, and write the sample if it was one.

        Args:
            at: how many steps are done, where something else counts them.

        Raises:
            ArgumentError: ``at`` is no number of steps.
            NMError: the sample cannot be written.
        """
        done = self._steps + 1 if at is None else _whole(at, "at", "a number of steps from 0 on", 0)
        step, sample = self._steps, self._sample
        found = {} if sample is None else sample.figures()
        self._close_sample()
        if sample is not None and found:
            self._due = (step // self._every + 1) * self._every
            self._places |= sample.places
        if not 0 <= done - step <= self._every:  # another run goes on here
            self._due = -(-done // self._every) * self._every
        self._steps = done
        self._open_if_due()
        if found:
            self._rows = tuple(_row(step, site, figures) for site, figures in found.items())
            if self._write is not None and (self._all_ranks or is_first()):
                self._write(self._rows)

    def close(self) -> None:
        """Take no more samples."""
        self._close_sample()
        _alive.pop(self.number, None)

    def _close_sample(self) -> None:
        self._sample = None
        SAMPLES.pop(self.number, None)

    def _open_if_due(self) -> None:
        if self._steps >= self._due and self.number in _alive:
            self._sample = SAMPLES[self.number] = Sample(self._places)

    def __repr__(self) -> str:
        return f"Meter after {self._steps} steps; a sample every {self._every}"


_numbers = itertools.count()
#: The meters that somebody holds and nobody has closed.
_alive: WeakValueDictionary[int, Meter] = WeakValueDictionary()


def _row(step: int, text: str, figures: dict[str, float]) -> Row:
    site = site_of(text)
    words = ("module", "role", "product", "prune", "format", "method")
    about = {word: getattr(site, word) for word in words}
    return {"step": step, **about, **{name: figures.get(name) for name in FIGURES}}


def _whole(value: object, name: str, what: str, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # integers of NumPy too
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ArgumentError(f"{name} = {shown(value)}: write {what}")
    return number

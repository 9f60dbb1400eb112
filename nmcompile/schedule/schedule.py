"""``nmcompile.Schedule``: other policies at other steps, over the same parameters."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any
from weakref import WeakSet

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import nn

from nmcompile import in_place
from nmcompile._dynamo import is_compiled_wrapper, module_of
from nmcompile._torch import records_cuda_graphs
from nmcompile.backend import report_of
from nmcompile.errors import ArgumentError, OptionError, ScheduleError, shown
from nmcompile.policy import Policy
from nmcompile.policy.blocks import alike_blocks
from nmcompile.policy.paths import named_modules
from nmcompile.report.report import Report
from nmcompile.schedule import ranks, trainers
from nmcompile.schedule.phases import Phases, step_number
from nmcompile.schedule.warm_up import run, untouched
from nmcompile.weight_masks.table import forget

log = logging.getLogger(__name__)

Calls = dict[nn.Module, Callable[..., Any] | None]


class Schedule:
    """Other policies at other steps: one compiled version of a model for each, over its weights.

    The model is compiled in place, once for each policy, as ``nmcompile.compile`` does it: class,
    parameter names and checkpoints stay, and ``model(x)`` runs the version of the phase that holds.
    A switch sets a pointer; it compiles nothing once each version has run, or after ``warm_up``.

    Args:
        model: any module; it is changed in place. Of ``DistributedDataParallel``, the model inside.
        phases: the step at which a phase begins, and its policy (a recipe's name, a path, a
            ``Policy`` or a mapping): ``{0: "dense", 1000: "full", 9000: "dense"}``. From 1,000
            calls of ``step()`` on, ``full`` holds. All of them are read here.
        each: as in ``nmcompile.compile``: compile these blocks one by one.
        dynamic, fullgraph, options: as in ``nmcompile.compile``, for all versions.

    Attributes:
        model: the module that was compiled.

    Raises:
        ScheduleError: the phases are no schedule, or another rank has others.
        PolicyError: a policy cannot be read; the message says of which phase.
        ArgumentError, OptionError: as of ``nmcompile.compile``.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Mapping[int, str | PathLike[str] | Policy | Mapping[str, Any]],
        *,
        each: str | None = None,
        dynamic: bool | None = None,
        fullgraph: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._phases = Phases.read(phases)
        if is_compiled_wrapper(model):
            raise ArgumentError(
                "the model is what torch.compile returned: give the model itself, which the "
                "schedule compiles in place"
            )
        if isinstance(options, Mapping) and options.get("policy") is not None:
            raise OptionError("a policy in options would hold at every step: write it as a phase")
        self.model = module_of(model) or model
        self._number = next(_schedules)
        ranks.check_phases(self._number, _digest(self._phases))
        modules = _parts(self.model, each, self._phases.policies[0])
        self._versions: dict[int, Calls] = {}  # by the identity of their policy
        for policy in self._phases.distinct:
            in_place.compile(
                self.model,
                policy,
                each=each,
                dynamic=dynamic,
                fullgraph=fullgraph,
                options=options,
            )
            self._versions[id(policy)] = {m: _pointer(m) for m in modules}
        # The first run of a CUDA graph warms up, and the second one records.
        self._runs = 2 if records_cuda_graphs(options) else 1
        self._pointers: Calls = {}
        self._steps = self._switches = 0
        self._waiting = False  # for the next call, whose arguments warm_up() takes
        self._warm: set[tuple[bool, bool]] = set()  # as (training, with gradients)
        self._point_to(self.policy)
        _alive.add(self)

    # -- where it stands

    @property
    def steps(self) -> int:
        """How many steps are done."""
        return self._steps

    @property
    def phases(self) -> dict[int, Policy]:
        """The policies by the step at which each begins."""
        return dict(zip(self._phases.starts, self._phases.policies, strict=True))

    @property
    def policy(self) -> Policy:
        """The policy that holds now."""
        return self._phases.policies[self._phases.index_at(self._steps)]

    @property
    def reports(self) -> dict[int, Report]:
        """What each phase got, by the step at which it begins, as ``nmcompile.last_report``.

        A phase of which nothing has been compiled yet is left out.
        """
        found = {}
        for start, policy in self.phases.items():
            if report := report_of(policy, list(self._versions[id(policy)])):
                found[start] = report
        return found

    def compiled(self, module: nn.Module) -> Callable[..., Any] | None:
        """What runs in place of a module's forward now; None where nothing does."""
        return self._versions[id(self.policy)].get(module)

    def __repr__(self) -> str:
        now = self._phases.index_at(self._steps)
        named = zip(self._phases.starts, self._phases.names, strict=True)
        text = ", ".join(f"{s}: {n}{' (now)' * (i == now)}" for i, (s, n) in enumerate(named))
        return f"Schedule of {type(self.model).__name__} after {self._steps} steps; {text}"

    # -- going on

    def step(self, at: int | None = None) -> None:
        """Count one training step, after the optimizer's own, and switch where a phase begins.

        With several processes each switch waits until all of them have come to it.

        Args:
            at: how many steps are done, where something else counts them.

        Raises:
            ScheduleError: ``at`` is no number of steps, the model was compiled by something else
                meanwhile, or another rank does not switch at this step.
        """
        self._go(self._steps + 1 if at is None else step_number(at, "at is a number of steps"))

    def state_dict(self) -> dict[str, Any]:
        """How many steps are done, and the phases, for a checkpoint: plain values, as JSON has."""
        return self._phases.state(self._steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ScheduleError: it is of another schedule, or none; and as ``step`` does.
        """
        self._go(self._phases.step_of(state))

    def _go(self, step: int) -> None:
        before, after = (self._phases.index_at(s) for s in (self._steps, step))
        if before != after:
            self._check_pointers()
            ranks.meet(self._number, self._switches, step)
            self._switches += 1
        self._steps = step
        if before != after:
            forget(self.model.parameters())  # a phase takes its own masks
            self._point_to(self.policy)

    def _point_to(self, policy: Policy) -> None:
        self._pointers = dict(self._versions[id(policy)])
        if self._waiting:
            self._pointers[self.model] = self._first_call
        for module, call in self._pointers.items():
            module._compiled_call_impl = call  # type: ignore[assignment]

    def _check_pointers(self) -> None:
        for module, call in self._pointers.items():
            if _pointer(module) is not call:
                raise ScheduleError(
                    f"{type(module).__name__} was compiled again after the schedule was made, so "
                    "that its phases no longer hold: leave out that compilation (a trainer's own, "
                    "nmcompile.compile, model.compile or another Schedule)"
                )

    # -- compiling before training

    def warm_up(self, *args: Any, **kwargs: Any) -> None:
        """Compile all versions now: call the model with each, as it would be called in training.

        The model's mode, autocast and whether gradients are on count as they are, so call it once
        as you train and once as you evaluate. Each version runs forward and backward; weights,
        gradients, buffers and the random numbers that follow are as before.

        Without arguments the next call of the model in training, and the next one in evaluation,
        does this first, with its own: where a trainer makes the calls.

        With several processes every rank has to warm up.

        Raises:
            ScheduleError: the model itself changes a parameter in its forward.
        """
        if args or kwargs:
            self._warm_up(args, kwargs)
            return
        self._waiting = True
        self._warm.clear()
        self._point_to(self.policy)

    # -- where a trainer counts the steps

    def transformers_callback(self) -> Any:
        """A ``transformers.TrainerCallback`` that follows ``global_step``.

        Checkpoints of the trainer hold the phases: one of another schedule is an error when
        training goes on.

        Raises:
            NMError: transformers is not installed.
        """
        return trainers.transformers_callback(self, self._phases)

    def lightning_callback(self) -> Any:
        """A ``Callback`` of PyTorch Lightning that follows ``global_step``.

        Checkpoints of the trainer hold the state of the schedule. Lightning counts the steps of
        all optimizers: with two, a batch counts twice.

        Raises:
            NMError: neither lightning nor pytorch_lightning is installed.
        """
        return trainers.lightning_callback(self)

    def _first_call(self, *args: Any, **kwargs: Any) -> Any:
        """The model, which warms up first where none of its mode did."""
        mode = (self.model.training, torch.is_grad_enabled())
        if mode not in self._warm:
            self._warm_up(args, kwargs)
            self._warm.add(mode)
        call = self.compiled(self.model) or self.model._call_impl
        return call(*args, **kwargs)

    def _warm_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        waiting, self._waiting = self._waiting, False
        policies = self._phases.distinct
        try:
            with _progress(len(policies)) as advance, untouched(self.model):
                for policy in policies:
                    start = self._phases.start_of(policy)
                    advance(f"compiling the version of step {start}")
                    self._point_to(policy)
                    with _named(start):
                        for _ in range(self._runs):
                            run(self.model, args, kwargs)
                advance("")
        finally:
            self._waiting = waiting
            self._point_to(self.policy)


_schedules = itertools.count()
_alive: WeakSet[Schedule] = WeakSet()


def versions_of(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """What any schedule runs in place of a module's forward, now or later."""
    for schedule in _alive:
        for calls in schedule._versions.values():
            if (call := calls.get(module)) is not None:
                yield call


def _parts(model: nn.Module, each: str | None, policy: Policy) -> list[nn.Module]:
    """The model, and what is compiled of it one by one.

    Raises:
        ArgumentError: a parent of such a part is compiled already.
    """
    if each is None or not isinstance(model, nn.Module):
        return [model]  # and what is no module is refused where it is compiled
    groups = alike_blocks(model, each, policy)
    blocks = [block for group in groups for block in group.values()]
    for path, _, module in named_modules(model):
        inside = {id(m) for m in module.modules() if m is not module}
        if _pointer(module) is not None and any(id(b) in inside for b in blocks):
            raise ArgumentError(
                f"{path or 'the model'} is compiled already, with the blocks of each = "
                f"{shown(each)} inside of it, so that no switch would reach them: leave one out"
            )
    return [model, *blocks]


@contextmanager
def _named(start: int) -> Iterator[None]:
    """Let an error say in which version it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was the version of the phase from step {start} on.")
        raise


def _pointer(module: nn.Module) -> Any:
    """What runs in place of a module's own forward; None where nothing does."""
    return module._compiled_call_impl


def _digest(phases: Phases) -> str:
    return hashlib.sha256(json.dumps(phases.written()).encode()).hexdigest()[:12]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's standard error, for the first rank alone, and lines in the log."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    shown_here = console.is_terminal and ranks.is_first()
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown_here
    ) as bar:
        task = bar.add_task("", total=total)
        done = itertools.count()

        def advance(text: str) -> None:
            """``text`` is what begins now, and whatever came before is done."""
            if text:
                log.info(text)
            bar.update(task, completed=next(done), description=text)

        yield advance

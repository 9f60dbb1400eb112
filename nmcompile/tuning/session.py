"""Run a model whose graphs measure, batch by batch, from where an earlier run stopped."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from nmcompile import cache
from nmcompile._dynamo import BackendCompilerFailed, Caller, without_recompile_limit
from nmcompile.capture.inputs import Capture
from nmcompile.capture.regions import region_of
from nmcompile.errors import ArgumentError, NMError, shown
from nmcompile.execution.targets import Target
from nmcompile.gemm import Role
from nmcompile.inductor.options import CUDA_GRAPHS, Settings
from nmcompile.inductor.plan_only import interpreted
from nmcompile.policy import Policy
from nmcompile.tuning.measure import Measurements, Sums
from nmcompile.tuning.products import Choice, Key, MarkProducts
from nmcompile.tuning.state import digest_of, draw_from

Batch = Sequence[Any] | Mapping[str, Any]
#: Of files that keep what has been measured.
_VERSION = 1


class Session:
    """A model that is measured, and its batches.

    ``batches``: each the inputs of one call, a tuple or a mapping. ``step``: gives their loss, from
    the model and them; None where the model itself does.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        batches: Sequence[Batch],
        choices: Sequence[Choice],
        target: Target | None,
        cuda_graphs: bool = False,
        step: Callable[..., Any] | None = None,
    ) -> None:
        self.batches, self.choices = batches, choices
        self.target, self.cuda_graphs = target, cuda_graphs
        self.measured = Measurements()
        self.run = torch.compile(run, backend=self._backend(), dynamic=False)
        self.step = step
        self.losses: list[float] = []

    def _backend(self) -> Callable[..., Any]:
        def capture(gm: fx.GraphModule, inputs: list[Any]) -> Any:
            region = region_of(Caller.of(capture))
            inductor = CUDA_GRAPHS if self.cuda_graphs else {}
            settings = Settings(Policy.recipe("dense"), inductor, region=region, target=self.target)
            found = self.measured.found
            marks = MarkProducts(settings, Capture.of(gm, inputs), self.choices, found)
            return interpreted(gm, inputs, marks, self.measured.interpreter()).run

        return capture

    def loss(self, number: int, applied: Mapping[Key, Choice] | None = None) -> Tensor:
        """The loss of a batch, with some products pruned: all of a key alike.

        Random numbers are the same each time: what differs is what is pruned.

        Raises:
            NMError: it is no loss, or not finite.
        """
        batch = self.batches[number]
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch, {})
        draw_from(number)
        self.measured.applied = applied or {}
        try:
            with without_recompile_limit(), torch.enable_grad():
                if self.step is None:
                    value = scalar(self.run(*args, **kwargs))
                else:
                    value = scalar(self.step(self.run, *args, **kwargs))
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, NMError):
                raise error.inner_exception from None
            raise
        finally:
            self.measured.applied = {}
        if not math.isfinite(value.item()) and not applied:
            raise NMError(
                f"the loss of batch {number} is {value.item()}: leave the batch out, or mend it"
            )
        return value

    def measure(self, state: Path | None, step: Callable[[], None]) -> None:
        """Measure every batch that has not been; ``step`` is called after each.

        Args:
            state: a file to go on from, written after each batch; None for none.

        Raises:
            NMError: a batch without a loss or a finite gradient, or a state of something else.
        """
        found = self.measured
        first = self.loss(0)  # by now the products are known
        self._check(first)
        identity = self._identity(first)
        known = self._load(state, identity)
        for number in range(len(self.batches)):
            if number < known:
                step()
                continue
            found.measuring = True
            try:
                loss = self.loss(number)
                torch.autograd.grad(loss, _leaves(loss), allow_unused=True)
                wrong = found.end_batch(loss.item())
            finally:
                found.measuring = False
                found.drop()
            if wrong:
                raise NMError(
                    f"batch {number}: the gradient at {wrong} is not finite, though the loss is: "
                    "leave the batch out, or mend it"
                )
            self.losses.append(loss.item())
            self._save(state, identity)
            step()

    def _check(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise NMError(
                "the loss has no gradient: tune measures a training step, so the model needs "
                "parameters that require one, outside of torch.no_grad"
            )
        if not any(p.gemm.role is not Role.FPROP for p in self.measured.found.products):
            raise NMError(
                "no product of a backward was found: nothing of the model was traced, or it "
                "multiplies nothing (nmcompile.explain says why)"
            )

    def increase(self, applied: Mapping[Key, Choice], step: Callable[[], None]) -> float:
        """By how much the mean loss grows with these products pruned."""
        total = 0.0
        for number in range(len(self.batches)):
            total += self.loss(number, applied).item() - self.losses[number]
            step()
        return total / len(self.batches)

    # -- what is kept between two runs ---------------------------------------------------------

    def _load(self, state: Path | None, identity: str) -> int:
        """How many batches a file has measured already; what was measured is taken over."""
        if state is None or not state.exists():
            return 0
        try:
            kept = torch.load(io.BytesIO(state.read_bytes()), weights_only=True)
            version, count = kept["version"], len(kept["losses"])
        except Exception as error:  # whatever unpickling raises
            raise NMError(f"{state} is no state of nmcompile tune: name another file") from error
        same = version == _VERSION and kept["identity"] == identity
        if not same or kept["batches"] != self._digests(count):
            raise NMError(
                f"{state} was measured on another model, other batches or other choices: remove "
                "it, or name another file"
            )
        self.measured.sums = Sums.of(kept["sums"])
        self.losses = kept["losses"]
        return count

    def _save(self, state: Path | None, identity: str) -> None:
        if state is None:
            return
        kept = {
            "version": _VERSION,
            "identity": identity,
            "batches": self._digests(len(self.losses)),
            "losses": self.losses,
            "sums": self.measured.sums.plain(),
        }
        out = io.BytesIO()
        torch.save(kept, out)
        try:
            cache.write(state, out.getvalue())
        except OSError as error:
            raise NMError(f"{state}: cannot be written: {error.strerror or error}") from error

    def _digests(self, count: int) -> list[str]:
        return [digest_of(batch) for batch in self.batches[:count]]

    def _identity(self, loss: Tensor) -> str:
        """Of the model, its parameters and what may be chosen."""
        target = (self.target.name, self.cuda_graphs) if self.target else ""
        slots = [(p.slot, [*map(str, p.ways)]) for p in self.measured.found.products]
        return digest_of([repr((target, self.choices, slots)), _leaves(loss)])


def scalar(output: Any) -> Tensor:
    """The loss that a model returns: a number, or what its output calls so.

    Raises:
        ArgumentError: it is neither.
    """
    value = output
    if isinstance(output, Mapping):
        value = output.get("loss")
    elif not isinstance(output, Tensor):
        value = getattr(output, "loss", output)
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(())
    what = shown(type(output).__name__)
    if isinstance(value, Tensor):
        what = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    raise ArgumentError(
        f"the model gives {what}, and tune needs its loss: let it return one number, or an output "
        "with .loss; or give step = a function of the model and a batch that does"
    )


def _leaves(loss: Tensor) -> list[Tensor]:
    """Every tensor that the loss has a gradient for."""
    found: dict[int, Tensor] = {}
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        stack += [inner for inner, _ in node.next_functions]
    return list(found.values())

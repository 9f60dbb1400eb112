"""What ``tune`` found: a policy, what it is expected to cost and gain, and how that is known."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from nmcompile import cache
from nmcompile.errors import NMError
from nmcompile.policy import Policy, Rule
from nmcompile.report.rows import Frozen
from nmcompile.report.text import terminal_width
from nmcompile.tuning.choose import Option, chosen, least_cost, steps, within
from nmcompile.tuning.plot import draw, place_of
from nmcompile.tuning.products import Key
from nmcompile.tuning.rules import DENSE, Decision, Wanted, policy_of
from nmcompile.tuning.scores import Row


class Point(Frozen):
    """After one more step: share of the FLOPs pruned, gain so far and expected loss."""

    share: float
    gain: float
    loss: float


class Tuned(Frozen):
    """A policy by measurement. ``print(tuned)`` shows a table.

    Losses are in the unit of the model's own loss.
    """

    schema_version: Literal[1] = 1
    flops_budget: float | None = Field(description="share of the FLOPs to prune, if asked for")
    loss_budget: float | None = Field(description="increase of the loss to stay within, if asked")
    target: str | None = Field(description="the GPU whose time is the gain; None for FLOPs")
    cuda_graphs: bool = Field(False, description="whether steps are taken for CUDA graphs there")
    batches: int = Field(description="how many batches were measured")
    passes: float = Field(
        description="what measuring and checking multiplied, in forward and backward passes over "
        "each batch"
    )
    base_loss: float = Field(description="mean loss of these batches, with nothing pruned")
    terms: float = Field(description="independent predictions that the loss is the mean of")
    noise_cost: float = Field(description="the loss that gradient noise as large as the batch's is")
    expected_loss: float = Field(description="expected increase by what forward products prune")
    measured_loss: float | None = Field(
        description="the same, measured on these batches; None where none is pruned"
    )
    noise: float = Field(description="variance that pruned gradients add, over the mini-batch's")
    pruned_share: float = Field(description="FLOPs of pruned products over those of all")
    gain: float = Field(description="seconds, or FLOPs left out")
    rows: tuple[Row, ...]
    curve: tuple[Point, ...] = Field(description="all steps in order, whatever the budget")

    @property
    def policy(self) -> Policy:
        """The policy: rules for patterns of modules, exceptions first."""
        return policy_of([_wanted(row) for row in self.rows])

    def to_toml(self, path: str | Path | None = None) -> str:
        """The policy as a file whose rules carry what they cost and gain; also written to ``path``.

        Raises:
            NMError: the file cannot be written.
        """
        text = _file(self)
        Policy.loads(text)
        if path is not None:
            _write(path, text)
        return text

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON (``schema_version`` 1); also written to ``path``.

        Raises:
            NMError: the file cannot be written.
        """
        data: dict[str, Any] = self.model_dump(mode="json")
        data["policy"] = self.policy.to_toml()
        text = json.dumps(data, indent=2) + "\n"
        if path is not None:
            _write(path, text)
        return text

    def plot(self, path: str | Path) -> Path:
        """Draw gain against expected loss, and what was chosen; the name's ending is the format.

        Raises:
            NMError: matplotlib is not installed, or the file cannot be written.
        """
        return draw(self, Path(path))

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=terminal_width(), highlight=False).print(self)
        return out.getvalue()

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self)
        yield Text("\n".join(summary(self)))


def select(
    rows: tuple[Row, ...], flops: float | None, loss: float | None, scale: float = 1.0
) -> dict[Key, str]:
    """The name of the choice of every row that is pruned for a budget.

    Args:
        rows: with what each choice costs.
        flops: the share of all FLOPs to prune at least.
        loss: the expected increase of the loss to stay within.
        scale: of what forward products cost.

    Raises:
        NMError: the budget cannot be reached.
    """
    found = steps(_options(rows, scale))
    of = {row.key: row.flops for row in rows}
    everything = sum(of.values())
    if flops is not None:
        taken = least_cost(found, of, flops * everything)
        share = sum(of[key] for key in chosen(taken)) / everything
        if share < flops:
            raise NMError(
                f"flops = {flops:g} cannot be reached: products of {share:.1%} of the FLOPs can be "
                f"pruned; ask for at most {int(1000 * share) / 1000:g}, or allow more with prune "
                "and formats"
            )
    else:
        assert loss is not None
        taken = within(found, loss)
        if not taken:
            least = min((s.cost for s in found), default=0.0)
            raise NMError(
                f"loss = {loss:g} cannot be kept: the least that pruning a product costs is "
                f"{least:.3g}"
            )
    return {key: option.name for key, option in chosen(taken).items()}


def curve_of(rows: tuple[Row, ...]) -> tuple[Point, ...]:
    """All steps in order."""
    of = {row.key: row.flops for row in rows}
    everything = sum(of.values())
    pruned: set[Key] = set()
    points = [Point(share=0.0, gain=0.0, loss=0.0)]
    gain = loss = 0.0
    for step in steps(_options(rows)):
        pruned.add(step.key)
        gain, loss = gain + step.gain, loss + step.cost
        points.append(Point(share=sum(of[k] for k in pruned) / everything, gain=gain, loss=loss))
    return tuple(points)


def _options(rows: tuple[Row, ...], scale: float = 1.0) -> dict[Key, list[Option]]:
    return {
        row.key: [
            Option(c.name, c.loss * (scale if c.noise is None else 1.0), c.gain) for c in row.costs
        ]
        for row in rows
    }


def with_choices(rows: tuple[Row, ...], names: Mapping[Key, str]) -> tuple[Row, ...]:
    """The rows with what was chosen."""
    return tuple(row.model_copy(update={"chosen": names.get(row.key)}) for row in rows)


def _wanted(row: Row) -> Wanted:
    choice = row.choice
    decision: Decision | None = DENSE
    if choice is not None:
        decision = (("prune", choice.prune), ("format", choice.format))
    elif not row.prunable:
        decision = None
    return Wanted(row.module, row.module_class, row.op, row.role, decision, row.dtype, row.flops)


# -- text ----------------------------------------------------------------------------------------


def summary(tuned: Tuned) -> list[str]:
    """What was found, in a few lines."""
    budget = f"flops = {tuned.flops_budget}"
    if tuned.loss_budget is not None:
        budget = f"loss = {tuned.loss_budget}"
    gain = f"{100 * tuned.pruned_share:.1f} % of the FLOPs in pruned products"
    if tuned.target:
        gain += f", {1e6 * tuned.gain:.0f} us a step less on {place_of(tuned)}, predicted"
    seen = "" if tuned.measured_loss is None else f" (measured {tuned.measured_loss:+.4g})"
    return [
        f"budget {budget}: {gain}",
        f"forward: loss {tuned.expected_loss:+.4g} expected{seen}, from {tuned.base_loss:.4g} on "
        f"{tuned.batches} batches",
        f"gradients: {100 * tuned.noise:.1f} % more variance than the mini-batches' own, weighed "
        f"as {tuned.noise * tuned.noise_cost:.4g} of loss",
    ]


def _table(tuned: Tuned) -> Table:
    table = Table(title="what pruning costs, and what was chosen", title_justify="left")
    for column in ("module", "role"):
        table.add_column(column, overflow="fold")
    for column in ("FLOPs", "first order", "noise", "cost"):
        table.add_column(column, justify="right")
    table.add_column("best way")
    table.add_column("chosen")
    everything = sum(row.flops for row in tuned.rows) or 1.0
    for row in tuned.rows:
        best = row.choice or min(row.costs, key=lambda c: c.loss, default=None)
        numbers = ["-"] * 3
        if best is not None:
            first = "-" if best.first is None else f"{best.first:+.2g}"
            noise = "-" if best.noise is None else f"{best.noise:.2g}"
            numbers = [first, noise, f"{best.loss:.2g}"]
        module, share = row.module or "(root)", f"{100 * row.flops / everything:.1f} %"
        way = best.name if best is not None else row.reason
        cells = (module, f"{row.op} {row.role}", share, *numbers, way, row.chosen or "dense")
        table.add_row(*map(Text, cells))
    return table


def _file(tuned: Tuned) -> str:
    policy = tuned.policy
    decided: dict[int, list[Row]] = {n: [] for n in range(len(policy.rules))}
    for row in tuned.rows:
        for n, rule in enumerate(policy.rules):
            if rule.matches(_wanted(row)):
                decided[n].append(row)
                break
    lines = ["A policy by measurement (nmcompile tune).", *summary(tuned)]
    parts = ["".join(f"# {line}\n" for line in lines) + "\nschema = 1\n"]
    everything = sum(row.flops for row in tuned.rows)
    for n, rule in enumerate(policy.rules):
        parts.append(f"# {_about(decided[n], everything, tuned)}\n{_toml(rule)}")
    return "\n".join(parts)


def _about(rows: list[Row], everything: float, tuned: Tuned) -> str:
    """What a rule costs and gains, or what it avoids."""
    count = sum(row.products for row in rows)
    products = f"{count} product{'s' if count != 1 else ''}"
    share = f"{100 * sum(row.flops for row in rows) / everything:.1f} % of the FLOPs"
    pruned = [c for row in rows if (c := row.choice)]
    left = [min(row.costs, key=lambda c: c.loss) for row in rows if row.costs and not row.choice]
    some = pruned or left
    loss = sum(c.loss for c in some if c.noise is None)
    noise = [c.noise for c in some if c.noise is not None]
    costs = [f"loss {loss:+.2g}"] if any(c.noise is None for c in some) else []
    costs += [f"gradient noise {100 * sum(noise):+.2g} %"] if noise else []
    cost = " and ".join(costs) or "not measured"
    if not pruned:
        return f"{products}, {share}, dense: pruned they would cost {cost}"
    gain = f", {1e6 * sum(c.gain for c in pruned):.0f} us less" if tuned.target else ""
    return f"{products}, {share}{gain}: {cost}"


def _toml(rule: Rule) -> str:
    text = "[[rule]]" + Policy(rules=[rule]).to_toml().partition("[[rule]]")[2]
    return re.sub(r"\[\n +(.+?),\n\]", lambda m: f"[{' '.join(m[1].split())}]", text, flags=re.S)


def _write(path: str | Path, text: str) -> None:
    try:
        cache.write(Path(path), text.encode())
    except OSError as error:
        raise NMError(f"{path}: cannot be written: {error.strerror or error}") from error

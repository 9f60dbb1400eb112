"""The summary of a study: one table per network, for the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import Study

HINT = (
    "* differs from dense: the 95% interval of the difference, paired over seeds, excludes 0. "
    "Without * these runs do not tell the two apart."
)

#: What arms are compared with.
BASE = next(iter(ARMS))


def columns(study: Study) -> list[str]:
    """The head of every table."""
    label = study.metric.label
    return [
        "arm", "FLOPs pruned", "train loss", "validation loss", label, "difference",
        f"{label} without masks",
    ]  # fmt: skip


def table(study: Study, rows: Sequence[Row], network: str) -> list[list[str]]:
    """The cells of one network's table, a row per arm: mean ± standard deviation over seeds."""
    compared = [Compared(study, rows, network, arm) for arm in arms_of(rows)[network]]
    most = max(len(arm.rows) for arm in compared)
    return [arm.cells(most) for arm in compared]


class Compared:
    """An arm of a network beside another one, the dense one if none is named."""

    def __init__(
        self, study: Study, rows: Sequence[Row], network: str, arm: str, base: str = BASE
    ) -> None:
        self.arm, self.metric = arm, study.metric
        own, other = (
            {r["seed"]: r for r in rows if r["network"] == network and r["arm"] == name}
            for name in (arm, base)
        )
        self.rows = list(own.values())
        self.pairs = [(own[seed], other[seed]) for seed in own if seed in other and arm != base]

    def cells(self, seeds: int) -> list[str]:
        """A row of the table, which says so where it is of fewer than ``seeds`` seeds."""
        m = self.metric
        masked, plain = self.values(m.column), self.values(f"dense_forward_{m.column}")
        fewer = f" ({len(self.rows)} of {seeds} seeds)" if len(self.rows) < seeds else ""
        return [
            self.arm + fewer,
            f"{100 * self.rows[0]['pruned_flops_share']:.1f}%",
            _spread(self.values("train_loss"), 1, 4) + self.star("train_loss"),
            _spread(self.values("validation_loss"), 1, 4) + self.star("validation_loss"),
            self.value(),
            self.difference(),
            "same" if masked == plain else _spread(plain, m.scale, m.digits),
        ]

    def value(self) -> str:
        """The metric, mean ± standard deviation over seeds."""
        m = self.metric
        return _spread(self.values(m.column), m.scale, m.digits)

    def difference(self) -> str:
        """Of the metric, with a star where it is certain; empty without a pair."""
        m = self.metric
        if not self.pairs:
            return ""
        found = _spread(self.differences(m.column), m.scale, m.digits, sign="+")
        return found + self.star(m.column, m.step)

    def values(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    def differences(self, column: str) -> list[float]:
        """To dense, for every seed that both have."""
        return [own[column] - base[column] for own, base in self.pairs]

    def verdict(self, column: str, better: str, step: float) -> str:
        """One of "worse", "better", "not told apart" and "one seed".

        ``better`` is "higher" or "lower".
        """
        if len(self.pairs) < 2:
            return "one seed"
        if not self.star(column, step):
            return "not told apart"
        higher = statistics.fmean(self.differences(column)) > 0
        return "better" if higher == (better == "higher") else "worse"

    def star(self, column: str, step: float = 0.0) -> str:
        """``" *"`` where the 95% interval of the mean difference excludes 0.

        The standard deviation is taken to be ``step`` at least: three seeds that all differ by one
        image would else look certain.
        """
        differences = self.differences(column)
        count = len(differences)
        if count < 2:
            return ""
        from scipy.stats import t

        deviation = max(step, statistics.stdev(differences))
        half = t.ppf(0.975, count - 1) * deviation / math.sqrt(count)
        return " *" if abs(statistics.fmean(differences)) > half else ""


def show(console: Console, study: Study, rows: Sequence[Row]) -> None:
    """Print every network's table and how to read it."""
    for network in arms_of(rows):
        printed = Table(title=f"{study.title}: {network}", title_justify="left", pad_edge=False)
        printed.add_column("arm", no_wrap=True)
        for column in columns(study)[1:]:
            printed.add_column(column, justify="right")
        for cells in table(study, rows, network):
            printed.add_row(*cells)
        console.print(printed)
    console.print(HINT, highlight=False)


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """The summary as a file."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"# Accuracy: {study.title.lower()}",
        "",
        f"Data: {_all(rows, 'data')}. {seeds} seeds; equal seeds have equal initial parameters and "
        "equal batches in every arm. AdamW, linear warm-up over a tenth of the steps, then cosine "
        "to 0. The hyperparameters were chosen for `dense` and are the same in every arm.",
        "",
        f"Made by `python -m benchmarks.accuracy {study.name}` on {_all(rows, 'machine')}, one "
        "thread per run, float32, simulated (mask, then a dense product). Python "
        f"{_all(rows, 'python')}, torch {_all(rows, 'torch')}, nmcompile "
        f"{_all(rows, 'nmcompile')}, commit {_all(rows, 'commit')}.",
        "",
    ]
    for network in arms_of(rows):
        steps = int(next(row["steps"] for row in rows if row["network"] == network))
        lines += [f"## {network}, {steps} steps", ""]
        lines += markdown_table(columns(study), table(study, rows, network))
        lines += ["", *_findings(study, rows, network), ""]
    used = {row["arm"] for row in rows}
    lines += ["## The arms", ""]
    lines += [f"- `{arm}`: {ARMS[arm].meaning}." for arm in ARMS if arm in used]
    exception = "No layer is excepted where the arm's name does not say so"
    lines += ["", "## How to read this", ""]
    lines += [note.format(exception=exception) for note in _NOTES]
    return "\n".join(lines) + "\n"


_NOTES = (
    "- Cells are mean ± standard deviation over seeds; `difference` is to `dense`, paired over "
    "seeds. `*`: the paired difference to `dense` has a 95% interval (Student t, no correction "
    "for the number of comparisons) that excludes 0; the spread of accuracies is taken to be one "
    "image at least.",
    "- Train loss: mean over the last tenth of the steps, as the arm computes it, so with masks "
    "where its forward product is pruned. Validation prunes the forward product as training does; "
    "`without masks` validates the same parameters densely.",
    "- FLOPs pruned: share of the linear and convolution products of a training step, all three "
    "roles together, that have a pruned operand; sparse products skip half of these. The products "
    "inside attention stay dense and are not in this share. {exception} "
    "(where the reduction is shorter than a block, as over one input channel, it stays dense).",
    "- What this does not support: conclusions about large models, long training, other data or "
    "speed. The models are tiny, the runs short and the seeds few: an arm without `*` has not been "
    "shown to be equal to `dense`, only not shown to differ.",
)


def _all(rows: Sequence[Row], column: str) -> str:
    """The values of a column, each once; rows from before the column have none."""
    return ", ".join(dict.fromkeys(row.get(column) or "not recorded" for row in rows))


def _findings(study: Study, rows: Sequence[Row], network: str) -> list[str]:
    """Which arms differ from dense, in words."""
    metric = study.metric
    lines = []
    for column, label, better, step in (
        ("train_loss", "train loss", "lower", 0.0),
        ("validation_loss", "validation loss", "lower", 0.0),
        (metric.column, metric.label, metric.better, metric.step),
    ):
        verdicts: dict[str, list[str]] = {"worse": [], "better": [], "not told apart": []}
        for arm in arms_of(rows)[network]:
            compared = Compared(study, rows, network, arm)
            if len(compared.pairs) >= 2:
                verdicts[compared.verdict(column, better, step)].append(f"`{arm}`")
        found = "; ".join(f"{word}: {', '.join(arms)}" for word, arms in verdicts.items() if arms)
        if found:
            lines.append(f"- {label}, beside `dense`: {found}.")
    return lines


def _spread(values: Sequence[float], scale: float, digits: int, sign: str = "") -> str:
    mean = scale * statistics.fmean(values)
    text = f"{mean:{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.{digits}f}"
    return text


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, all columns but the first aligned to the right."""
    marks = [":--", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *cells)]

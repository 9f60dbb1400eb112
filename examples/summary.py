"""The summary of a study: one table per network, for the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from examples.results import Row, arms_of
from examples.studies import ARMS, MEANING, Study

HINT = (
    "How to read: compare 'difference' (to dense, paired over seeds) with its spread; without * "
    "the 95% interval of the difference includes 0 and the runs do not tell the two apart."
)

_BASE = next(iter(ARMS))


def columns(study: Study) -> list[str]:
    """The head of every table."""
    label = study.metric.label
    return [
        "arm", "FLOPs pruned", "train loss", "validation loss", label, "difference",
        f"{label} without masks",
    ]  # fmt: skip


def table(study: Study, rows: Sequence[Row], network: str) -> list[list[str]]:
    """The cells of one network's table, a row per arm: mean +- standard deviation over seeds."""
    metric, scale, digits = study.metric.column, study.metric.scale, study.metric.digits
    base = _by_seed(rows, network, _BASE)
    cells = []
    for arm in arms_of(rows)[network]:
        own = _by_seed(rows, network, arm)
        seeds = sorted(own.keys() & base.keys())

        def measured(column: str, own: dict = own) -> list[float]:
            return [row[column] for row in own.values()]

        def paired(column: str, own: dict = own, seeds: list = seeds) -> list[float]:
            return [own[seed][column] - base[seed][column] for seed in seeds]

        compared = arm != _BASE and bool(seeds)
        losses = [
            _spread(measured(column), 1, 4) + (_star(paired(column)) if compared else "")
            for column in ("train_loss", "validation_loss")
        ]
        forward, plain = measured(metric), measured(f"dense_forward_{metric}")
        difference = paired(metric)
        cells.append(
            [
                arm,
                f"{100 * measured('pruned_flops_share')[0]:.1f}%",
                *losses,
                _spread(forward, scale, digits),
                _spread(difference, scale, digits, sign="+") + _star(difference)
                if compared
                else "",
                "same" if forward == plain else _spread(plain, scale, digits),
            ]
        )
    return cells


def show(console: Console, study: Study, rows: Sequence[Row]) -> None:
    """Print every network's table and how to read it."""
    for network in arms_of(rows):
        printed = Table(title=f"{study.title}: {network}", title_justify="left", pad_edge=False)
        for column in columns(study):
            printed.add_column(column, justify="left" if column == "arm" else "right")
        for cells in table(study, rows, network):
            printed.add_row(*cells)
        console.print(printed)
    console.print(HINT, highlight=False)


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """The summary as a file."""
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"# Accuracy: {study.title.lower()}",
        "",
        f"Data: {study.data}. {seeds} seeds; equal seeds have equal initial parameters and equal "
        "batches in every arm. AdamW, linear warm-up over a tenth of the steps, then cosine to 0. "
        "The hyperparameters were chosen for `dense` and are the same in every arm.",
        "",
        f"Made by `python -m examples.accuracy {study.name}` on {first['cpu']}, one thread per "
        f"run, float32, simulated (mask, then a dense product). Python {first['python']}, torch "
        f"{first['torch']}, nmcompile {first['nmcompile']}, commit {first['commit']}.",
        "",
    ]
    for network in arms_of(rows):
        steps = int(next(row["steps"] for row in rows if row["network"] == network))
        lines += [f"## {network}, {steps} steps", ""]
        lines += _markdown_table(columns(study), table(study, rows, network))
        lines += ["", *_findings(study, rows, network), ""]
    used = {row["arm"] for row in rows}
    lines += ["## The arms", ""]
    lines += [f"- `{arm}`: {text}." for arm, text in MEANING.items() if arm in used]
    lines += ["", "## How to read this", "", *_NOTES]
    return "\n".join(lines) + "\n"


_NOTES = (
    "- Cells are mean ± standard deviation over seeds; `difference` is to `dense`, paired over "
    "seeds. `*`: the paired difference to `dense` has a 95% interval (Student t, no correction "
    "for the number of comparisons) that excludes 0.",
    "- Train loss: mean over the last tenth of the steps, as the arm computes it, so with masks "
    "where its forward product is pruned. Validation prunes the forward product as training does; "
    "`without masks` validates the same parameters densely.",
    "- FLOPs pruned: share of the linear and convolution products of a training step, all three "
    "roles together, that have a pruned operand; sparse products skip half of these. The products "
    "inside attention stay dense and are not in this share. No layer is excepted: the first layer "
    "and the head are pruned like the rest (a dimension too short for a block stays dense).",
    "- What this does not support: conclusions about large models, long training, other data or "
    "speed. The models are tiny, the runs short and the seeds few: an arm without `*` has not been "
    "shown to be equal to `dense`, only not shown to differ.",
)


def _findings(study: Study, rows: Sequence[Row], network: str) -> list[str]:
    """Which arms differ from dense, in words."""
    metric, base = study.metric, _by_seed(rows, network, _BASE)
    groups: dict[str, list[str]] = {"worse": [], "better": [], "not told apart": []}
    for arm in arms_of(rows)[network]:
        own = _by_seed(rows, network, arm)
        seeds = sorted(own.keys() & base.keys())
        if arm == _BASE or len(seeds) < 2:
            continue
        change = [own[s][metric.column] - base[s][metric.column] for s in seeds]
        better = (statistics.fmean(change) > 0) == (metric.better == "higher")
        group = "not told apart" if not _star(change) else "better" if better else "worse"
        groups[group].append(f"`{arm}`")
    return [
        f"- {metric.label}, {verdict}{' from' if 'told' in verdict else ' than'} `dense`: "
        f"{', '.join(arms)}."
        for verdict, arms in groups.items()
        if arms
    ]


def _by_seed(rows: Sequence[Row], network: str, arm: str) -> dict[float, Row]:
    return {r["seed"]: r for r in rows if r["network"] == network and r["arm"] == arm}


def _spread(values: Sequence[float], scale: float, digits: int, sign: str = "") -> str:
    mean = scale * statistics.fmean(values)
    text = f"{mean:{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.{digits}f}"
    return text


def _star(differences: Sequence[float]) -> str:
    """``" *"`` where the 95% interval of the mean difference excludes 0."""
    count = len(differences)
    if count < 2:
        return ""
    from scipy.stats import t

    half = t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return " *" if abs(statistics.fmean(differences)) > half else ""


def _markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    marks = [":--", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *cells)]

"""The results of the zoo: one row of a CSV for each entry, and the page made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.zoo.check import Outcome

RESULTS = records.RESULTS / "zoo.csv"
PAGE = records.ROOT / "docs" / "zoo.md"
Row = dict[str, str]

#: Columns of the page and their headings; of some, two or three of the CSV are one. The CSV has
#: those of the machine and versions as well.
SHOWN = {
    "name": "model",
    "graphs": "graphs",
    "fprop/dgrad/wgrad": "products",
    "unpathed": "unpathed",
    "guessed": "guessed",
    "layers": "layers",
    "pruned": "pruned",
    "short": "no block",
    "matmul": "no weight",
    "inside": "inside",
    "eager": "eager",
    "attention": "attention",
    "deviation": "deviation",
    "loss_first/loss_last": "loss",
    "compile_dense_s": "compile (s)",
    "compile_ratio": "full / dense",
}
#: Shares of what a step multiplies.
_PARTS = ("pruned", "short", "matmul", "inside", "eager", "attention")
_ORIGIN = ("machine", "torch", "transformers", "diffusers", "commit")
COLUMNS = (
    *(column for shown in SHOWN for column in shown.split("/")),
    *("parameters", "skipped", "family", "unlisted", "note"),
    *_ORIGIN,
)


def row(outcome: Outcome) -> Row:
    """The cells of one entry."""
    report, sites = outcome.report, outcome.report.sites
    roles = Counter(str(site.role) for site in sites)
    skipped = Counter(s.reason.code.replace("-", " ") for s in report.skipped)
    return {
        "name": outcome.entry.name,
        "family": outcome.entry.family,
        "parameters": str(outcome.parameters),
        "graphs": str(outcome.graphs),
        **{role: str(roles[role]) for role in ("fprop", "dgrad", "wgrad")},
        "skipped": ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())),
        "unlisted": ", ".join(outcome.entry.eager_only),
        "unpathed": str(outcome.unpathed),
        "guessed": str(outcome.guessed),
        "layers": f"{outcome.shares.of_layers:.4f}",
        **{part: f"{outcome.shares.of(part):.4f}" for part in _PARTS},
        "deviation": f"{outcome.deviation:.1e}",
        "loss_first": f"{outcome.losses[0]:.3f}",
        "loss_last": f"{outcome.losses[-1]:.3f}",
        "compile_dense_s": f"{outcome.seconds['dense']:.2f}",
        "compile_ratio": f"{outcome.seconds['full'] / outcome.seconds['dense']:.2f}",
        "note": outcome.entry.note,
        **records.origin(*_ORIGIN),
    }


def read(path: Path = RESULTS) -> list[Row]:
    """The rows of a CSV; none where there is no file."""
    return records.read(path)


def write(path: Path, rows: Iterable[Row], order: Sequence[str]) -> list[Row]:
    """Write ``rows`` beside those of other entries that the file has; those not in ``order`` go."""
    by_name = {r["name"]: r for r in (*read(path), *rows)}
    known = [by_name[name] for name in order if name in by_name]
    # A row of an earlier run may have other columns.
    kept = [{column: row.get(column, "") for column in COLUMNS} for row in known]
    records.write(path, kept, COLUMNS)
    return kept


_HEAD = """\
# Model zoo

What `backend="nm_sparse"` does to {count} architectures, each tiny, with random weights from its
configuration and without dropout. `python -m benchmarks.zoo` writes this page and
[`zoo.csv`](../benchmarks/results/zoo.csv), which has the notes, versions and machine of each row;
`python -m benchmarks.zoo llama` runs one model, `--list` names all.

Each row is of compiled code and was checked so. `tests/zoo` checks all of it again: one model of
each family compiled (but the U-Net), the others interpreted after all passes.

- Policy `dense` equals eager mode in float32: the loss, and every element of every parameter's
  gradient within {rtol:g} of its tensor's largest (plus {noise:g} of the largest gradient).
- Policy `full` trains: {steps} steps of AdamW on one batch, every loss finite, the last at most 0.9
  of the first. Everything is compiled in the first step.
- The report is complete. A dispatch mode counts every product of an eager step without looking at
  any graph: the FLOPs of each module, forward and backward, are those of the report, and each
  linear layer and convolution that ran is there under its own path, in each role, as often as it
  was called. Fused operators are listed as skipped under the module that they ran in, what runs in
  no graph is what `explain` counts, and what is listed as a product without a weight read no
  parameter.
- Policy `full` prunes every linear, convolution and grouped product in all three roles, but for
  those that reduce over fewer than 4 elements where a block would lie. Nothing is pruned whose role
  was not derived.
"""
_FOOT = """\
`products` are numbers of `fprop` / `dgrad` / `wgrad`. `unpathed` are products that belong to no
module but the model itself; `guessed` are those whose role could not be derived, and which are
dense for that reason.

Shares are of FLOPs, of everything that an eager step multiplies but fused attention: `pruned`; `no
block`, what reduces over fewer than 4 elements (three channels of an image, one channel of a
depthwise convolution, one token of an expert); `no weight`, products of two activations, which
`full` leaves alone; `inside`, of operators that hide their products; `eager`, what runs in no
graph. `attention` is the share of the whole step that is fused attention. `layers` is the pruned
share of linear, convolution and grouped products whose sizes have blocks, and of what runs eagerly.

`deviation` is the largest one of `dense` from eager mode, relative as in the tolerance. `loss` is
that of the first and the last step. `compile` is the process's own CPU time of the first step,
which traces, rewrites and generates code, without the C++ compiler; `full / dense` is its ratio to
that of the same step with policy `dense` in the same run, and varies by some tenths from run to
run. A `?` is what was not counted yet when that row was made.
"""


def page(rows: Sequence[Row]) -> str:
    """The page ``docs/zoo.md``, of the rows of the CSV alone and the criteria of the checks."""
    from benchmarks.zoo.check import NOISE, RTOL, STEPS

    head = _HEAD.format(count=len(rows), rtol=RTOL, noise=NOISE, steps=STEPS)
    lines = [head]
    for family in dict.fromkeys(r["family"] for r in rows):
        members = [r for r in rows if r["family"] == family]
        lines += [f"## {family.capitalize()}", "", *_table(members), ""]
        lines += [f"- {r['name']}: {r['note']}." for r in members if r["note"]]
        lines += [""] if any(r["note"] for r in members) else []
    versions = {f"torch {r['torch']}, transformers {r['transformers']}" for r in rows}
    machines = {r["machine"] for r in rows}
    commits = sorted({r["commit"] for r in rows})
    lines += ["## Columns", "", _FOOT]
    lines += [f"Run with {'; '.join(sorted(versions))}, at {', '.join(commits)}, on:"]
    lines += ["; ".join(sorted(machines)) + "."]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [list(SHOWN.values()), ["---"] * len(SHOWN)]
    cells += [[_cell(row, column) for column in SHOWN] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _cell(row: Row, column: str) -> str:
    if not all(row.get(part) for part in column.split("/")):
        return "?"  # of an earlier run, which had no such column
    if column == "layers" or column in _PARTS:
        share = float(row[column])
        return f"{share:.1%}" if share else "-"
    if column.startswith("loss"):
        return " to ".join(row[part] for part in column.split("/"))
    return " / ".join(row[part] for part in column.split("/"))

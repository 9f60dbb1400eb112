"""What the paper claims, with the numbers beside it, from the rows of all studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.accuracy.results import Row, arms_of
from benchmarks.accuracy.studies import Study
from benchmarks.accuracy.summary import BASE, Compared, markdown_table


class Claim(NamedTuple):
    """A sentence, and which arms are to be compared for it, each with another one."""

    text: str
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "MSE pruning of neural gradients fails",
        (
            ("mse-gradients", BASE),
            ("mse-gradients", "gradients-2:4"),
            ("mse-gradients-1:2", BASE),
            ("mse-gradients-1:2", "gradients-1:2"),
        ),
    ),
    Claim("MVUE 2:4 of neural gradients trains", (("gradients-2:4", BASE),)),
    Claim("MVUE 1:2 of neural gradients trains", (("gradients-1:2", BASE),)),
    Claim("1:2 is enough in most cases", (("gradients-1:2", "gradients-2:4"),)),
    Claim("Activations may be pruned by MSE", (("activations", BASE),)),
    Claim("Weights, with gradients by MVUE, train", (("weights", BASE),)),
    Claim("All of it together trains", (("full", BASE),)),
    Claim(
        "Not in the paper: where the failure of MSE comes from",
        (("mse-head-dgrad-1:2", BASE), ("mse-wgrad-1:2", BASE), ("mse-but-head-1:2", BASE)),
    ),
)


def markdown(studies: Sequence[tuple[Study, Sequence[Row]]]) -> str:
    """The page; a comparison of arms that were not both trained is left out."""
    lines = [
        "# The paper's claims, and what was found",
        "",
        "Claims of Chmiel, Hubara, Banner, Soudry, *Minimum Variance Unbiased N:M Sparsity for the "
        "Neural Gradients* (ICLR 2023), each beside the runs of the studies that bear on it. Cells "
        "are mean ± standard deviation over seeds; `difference` is paired over seeds, and its 95% "
        "interval excludes 0 where an arm is called better or worse.",
    ]
    head = ["network", "arm", "beside", "metric", "value", "difference", "seeds", "found"]
    for claim in CLAIMS:
        cells = [
            [
                f"{network} ({study.name})",
                f"`{arm}`",
                f"`{base}`",
                study.metric.label,
                found.value(),
                found.difference(),
                str(len(found.pairs)),
                found.verdict(study.metric.column, study.metric.better, study.metric.step),
            ]
            for study, rows in studies
            for network in arms_of(rows)
            for arm, base in claim.pairs
            for found in [Compared(study, rows, network, arm, base)]
            if found.pairs
        ]
        if cells:
            lines += ["", f"## {claim.text}", "", *markdown_table(head, cells)]
    return "\n".join(lines) + "\n"

"""What each command takes, and in what it ends; the work is done elsewhere.

Data goes to stdout, everything else to stderr. Exit codes: 0 fine, 1 findings, 2 a mistake in the
call, in TARGET or in a policy.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nmcompile.errors import NMError, NMWarning
from nmcompile.undisturbed import undisturbed

FINDINGS, USAGE = 1, 2

app = typer.Typer(
    name="nmcompile",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="N:M sparse training inside torch.compile: see what a policy does to a model.\n\n"
    "TARGET is package.module:attribute or file.py:attribute: a function without arguments that "
    "returns (model, args, kwargs). Nothing is trained, and no GPU is needed.",
)
policies = typer.Typer(
    no_args_is_help=True, help="Check, show and begin policy files; none of it needs a model."
)
app.add_typer(policies, name="policy")

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="module:attribute or file.py:attribute.")
]
PolicyOption = Annotated[
    str, typer.Option("--policy", "-p", metavar="P", help="A recipe's name or a policy file.")
]
GPU = Annotated[
    str | None,
    typer.Option("--target", "-t", metavar="GPU", help="Decide as for this GPU, such as h100."),
]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs", help="Decide as for steps in CUDA graphs: no time of the host."),
]
Each = Annotated[
    str | None,
    typer.Option(
        "--each", metavar="GLOB", help="Blocks such as layers.*: equal ones are one plan."
    ),
]
Meta = Annotated[
    bool,
    typer.Option("--meta", help="Make the model without values: no memory, and far less time."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as of

        print(f"nmcompile {of('nmcompile')}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks of our own errors.")] = False,
) -> None:
    """Options of every command; ``run`` reads ``--debug`` itself."""


@app.command()
def explain(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="module:attribute, file.py:attribute, or a report's JSON file."
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", "-p", metavar="P", help="A recipe's name or a policy file.  [default: full]"
        ),
    ] = None,
    gpu: GPU = None,
    cuda_graphs: CudaGraphs = False,
    each: Each = None,
    meta: Meta = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also as a page, for a browser.")
    ] = None,
    model_explorer: Annotated[
        Path | None,
        typer.Option(
            "--model-explorer", metavar="FILE", help="Also the graphs, for Google's Model Explorer."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 1 if a rule decided nothing or a product declined."),
    ] = False,
) -> None:
    """What a policy does to every product of a model, and why.

    Example: nmcompile explain train.py:case --policy full --target h100 --html report.html

    What --json wrote is read again: nmcompile explain report.json --html report.html
    """
    from nmcompile.cli import reports

    if target.endswith(".json"):
        report, title = reports.read(Path(target), policy, gpu, cuda_graphs, each, meta), target
    else:
        policy = policy or "full"
        report = reports.explained(target, policy, gpu, each, meta, cuda_graphs)
        title = f"{target}, policy {policy}"
    reports.show(report, as_json)
    if html is not None:
        message(f"page: {report.to_html(html, title)}")
    if model_explorer is not None:
        report.to_model_explorer(model_explorer, title)
        message(f"graphs: {model_explorer}, to be opened with `model-explorer {model_explorer}`")
    found = reports.findings(report) if strict else []
    for line in found:
        message(line)
    if found:
        raise typer.Exit(FINDINGS)


@app.command()
def diff(
    target: Target,
    policy: Annotated[
        list[str],
        typer.Option("--policy", "-p", metavar="P", help="Twice: the one before, the one after."),
    ],
    gpu: GPU = None,
    cuda_graphs: CudaGraphs = False,
    each: Each = None,
    meta: Meta = False,
    as_json: AsJson = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 1 if any product differs.")
    ] = False,
) -> None:
    """The products of a model that two policies treat differently.

    Example: nmcompile diff train.py:case --policy full --policy mine.toml
    """
    from nmcompile.cli import reports

    if len(policy) != 2:
        raise typer.BadParameter(f"give --policy twice, not {len(policy)} times")
    before, after = (reports.explained(target, p, gpu, each, meta, cuda_graphs) for p in policy)
    changes = reports.differences(before, after)
    reports.show_differences(changes, before, after, policy, as_json)
    if exit_code and changes:
        raise typer.Exit(FINDINGS)


@app.command()
def kernels(
    target: Target,
    policy: PolicyOption = "full",
    gpu: GPU = "h100",
    cuda_graphs: CudaGraphs = False,
    meta: Meta = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write each as a file there.")
    ] = None,
) -> None:
    """The Triton kernels that a GPU would get, as source.

    Example: nmcompile kernels train.py:case --target h100 --out kernels/
    """
    from nmcompile.cli import reports

    reports.show_kernels(
        reports.explained(target, policy, gpu, meta=meta, cuda_graphs=cuda_graphs), out
    )


@app.command()
def tune(
    target: Target,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            metavar="NAME=X",
            help="flops=0.5: the share of the FLOPs to prune; loss=0.05: the increase of the loss.",
        ),
    ],
    formats: Annotated[
        str, typer.Option("--formats", metavar="N:M,...", help="To choose among.")
    ] = "2:4",
    prune: Annotated[
        str,
        typer.Option("--prune", metavar="KIND,...", help="Operands: also weight."),
    ] = "activation,gradient",
    batches: Annotated[
        int, typer.Option("--batches", metavar="K", min=1, help="So many of those of TARGET.")
    ] = 8,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", metavar="GPU", help="Gain time on this GPU, such as h100; not FLOPs."
        ),
    ] = None,
    cuda_graphs: CudaGraphs = False,
    noise_cost: Annotated[
        float | None,
        typer.Option(
            "--noise-cost",
            metavar="LOSS",
            help="What gradient noise as large as the mini-batch's costs; a tenth of the loss.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The policy, as TOML.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Gain against cost: .png, .svg.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FILE", help="Keep what is measured, and go on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A policy by measurement: what pruning each product costs on a few batches, for a budget.

    TARGET returns (model, args, kwargs, batches): batches is an iterable of tuples or mappings of
    inputs, and model(*batch) the loss (one number, or an output with .loss). Nothing of the model
    changes. A run that was cut off goes on where --state names the same file.

    Example: nmcompile tune train.py:case --budget flops=0.5 --out policy.toml
    """
    from nmcompile.cli import tuning

    asked = tuning.Asked(budget, formats, prune, batches, gpu, cuda_graphs, noise_cost)
    tuning.show(tuning.tuned(target, asked, (out, plot), state), out, plot, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What runs sparse, simulated or dense on this machine, and why; a block for an issue."""
    from nmcompile.cli.doctor import show

    if not show(as_json):
        raise typer.Exit(FINDINGS)


@policies.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy files.")],
    target: Annotated[
        str | None,
        typer.Option("--model", metavar="TARGET", help="Also: does every rule decide something?"),
    ] = None,
) -> None:
    """Whether policy files are valid: every mistake with its line and what to write instead.

    Example: nmcompile policy check mine.toml --model train.py:case
    """
    from nmcompile.cli import policy_files

    if not policy_files.check(files, target):
        raise typer.Exit(FINDINGS)


@policies.command("show")
def show(
    policy: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, or a file.")] = "",
) -> None:
    """A recipe as TOML, or the list of all; of a file, every rule in effect."""
    from nmcompile.cli import policy_files

    policy_files.show(policy)


@policies.command("init")
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("policy.toml"),
    recipe: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="To begin with.")
    ] = "full",
) -> None:
    """Begin a policy file: a recipe to extend, and every key explained."""
    from nmcompile.cli import policy_files

    policy_files.init(file, recipe)


@policies.command("schema")
def schema() -> None:
    """The JSON Schema of policy files, for editors."""
    from nmcompile.cli import policy_files

    policy_files.schema()


def message(text: str) -> None:
    """A line for a person, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(text)


def run(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``nmcompile``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _shown_plainly()
    # At the end the system takes the memory back; object by object it would take seconds.
    atexit.register(gc.freeze)
    try:
        undisturbed(app)(given)
    except NMError as error:
        if "--debug" in given:
            raise
        message(f"nmcompile: {error}")
        sys.exit(USAGE)
    except BrokenPipeError:  # `nmcompile explain ... | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is left in the buffer of stdout would be tried once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        message(f"nmcompile: the output cannot be written: {error.strerror}")
        sys.exit(USAGE)


def _shown_plainly() -> None:
    """Our warnings as a line, without the place in our source that gave them."""
    plain = warnings.showwarning

    def show(text: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
        if issubclass(category, NMWarning):
            message(f"nmcompile: warning: {text}")
        else:
            plain(text, category, *rest, **more)  # type: ignore[arg-type]

    warnings.showwarning = show  # type: ignore[assignment]

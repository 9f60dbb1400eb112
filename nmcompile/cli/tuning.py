"""``nmcompile tune``: a policy by measurement, of a model that TARGET names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

import nmcompile
from nmcompile.cli.named import TargetError, load
from nmcompile.errors import NMError, OptionError, nearest
from nmcompile.tuning.result import Tuned, summary

_EXAMPLE = "def case(): return model, batches[0], {}, batches"


class Asked(NamedTuple):
    """The options that say what to choose: words as they were typed."""

    budget: str
    formats: str
    prune: str
    batches: int
    gpu: str | None
    cuda_graphs: bool
    noise_cost: float | None


def tuned(target: str, asked: Asked, written: Iterable[Path | None], state: Path | None) -> Tuned:
    """``nmcompile.tune`` of what TARGET names.

    Args:
        target: TARGET.
        asked: what to choose.
        written: files that the result will be written to, none of which may exist.
        state: what is kept of the measurement.

    Raises:
        NMError: a file that exists or cannot be written, before anything is measured.
        OptionError: a budget that is none.
        TargetError: TARGET gives no batches.
    """
    flops, loss = _budget(asked.budget)
    for path in filter(None, written):
        _check_free(path)
    if state is not None:
        _check_folder(state)
    named = load(target)
    batches = named.batches
    wanted = (
        "tune measures over several batches: return (model, args, kwargs, batches), with an "
        f"iterable of tuples or mappings of inputs: `{_EXAMPLE}`"
    )
    if batches is None:
        raise TargetError(f"{target} gives no batches: {wanted}")
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise TargetError(f"{target}: batches is a {type(batches).__name__}: {wanted}")
    return nmcompile.tune(
        named.model,
        list(itertools.islice(batches, asked.batches)),
        flops=flops,
        loss=loss,
        formats=_words(asked.formats),
        prune=_words(asked.prune),
        target=asked.gpu,
        cuda_graphs=asked.cuda_graphs,
        noise_cost=asked.noise_cost,
        state=state,
    )


def show(result: Tuned, out: Path | None, plot: Path | None, as_json: bool) -> None:
    """The files, and what was found: on stdout a document, the table, or the policy."""
    message = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    if out is not None:
        result.to_toml(out)
        message.print(f"policy: {out}")
    if plot is not None:
        result.plot(plot)
        message.print(f"plot: {plot}")
    if as_json:
        print(result.to_json(), end="")
    elif out is None:
        for line in summary(result):
            message.print(line)
        print(result.to_toml(), end="")
    else:
        Console(highlight=False).print(result)


def _budget(text: str) -> tuple[float | None, float | None]:
    name, equals, value = text.partition("=")
    example = "write flops=0.5 (a share of the FLOPs) or loss=0.05 (an increase of the loss)"
    if not equals:
        raise OptionError(f"--budget {text}: {example}")
    if name not in ("flops", "loss"):
        raise OptionError(f"--budget {text}: {nearest(name, ('flops', 'loss'))} {example}")
    try:
        number = float(value)
    except ValueError:
        raise OptionError(f"--budget {text}: {value!r} is no number: {example}") from None
    return (number, None) if name == "flops" else (None, number)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_free(path: Path) -> None:
    if path.exists():
        raise NMError(f"{path} exists: remove it, or name another file")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    """Now, not after minutes of measuring."""
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise NMError(f"{path}: cannot be written: {folder} is no folder that can be written to")

"""``nmcompile policy``: check files, show recipes, begin a file, write the schema."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from nmcompile.errors import NMError, NMWarning, PolicyError, Problem
from nmcompile.policy import Policy, recipe_names
from nmcompile.policy.toml import recipe_text


def check(files: Sequence[Path], target: str | None) -> bool:
    """Print every mistake of every file; whether there is none."""
    out = Console(highlight=False)
    found = 0
    for file in files:
        problems = _problems(file)
        found += len(problems)
        for text in problems:
            out.print(text, soft_wrap=True)
        if problems:
            continue
        policy = Policy.load(file)
        own = f"{len(policy.rules)} rules" if len(policy.rules) != 1 else "1 rule"
        after = f", then recipe {policy.extends}" if policy.extends else ""
        if target is None:
            out.print(f"{file}: fine: {own}{after}", markup=False)
            continue
        unused = _unused(target, file)
        found += len(unused)
        for rule in unused:
            out.print(f"{rule} decides nothing in {target}", markup=False, soft_wrap=True)
        if not unused:
            out.print(f"{file}: fine: {own}{after}; all decide something in {target}", markup=False)
    return not found


def _unused(target: str, file: Path) -> tuple[str, ...]:
    from nmcompile.cli.reports import explained

    return explained(target, str(file), None).unused_rules


def _problems(file: Path) -> list[Text]:
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            Policy.load(file)
    except PolicyError as error:
        source = (
            file.read_bytes().decode("utf-8-sig", "replace").split("\n") if file.is_file() else []
        )
        return [_shown(file, source, problem) for problem in error.problems]
    return [Text(str(w.message)) for w in told if issubclass(w.category, NMWarning)]


def _shown(file: Path, source: Sequence[str], problem: Problem) -> Text:
    """A problem with its line of the file, and what it is about underlined."""
    place = ":".join(str(x) for x in (file, problem.line, problem.column) if x is not None)
    head = problem.text if problem.text.startswith(str(file)) else f"{place}: {problem.text}"
    if problem.line is None or problem.line > len(source):
        return Text(head)
    line = source[problem.line - 1].rstrip()
    start = (problem.column or 1) - 1
    about = re.match(r"""(?:[^#"']|"[^"]*"|'[^']*')*""", line[start:])  # up to a comment
    width = max(1, len(about.group().rstrip())) if about else 1
    number = str(problem.line)
    margin = " " * len(number)
    return Text(f"{head}\n{margin} |\n{number} | {line}\n{margin} | {' ' * start}{'^' * width}")


def show(policy: str) -> None:
    """A recipe's own text, or every rule of a file in effect; without a name, all recipes."""
    out = Console(highlight=False)
    if not policy:
        grid = Table.grid(padding=(0, 2))
        for name in recipe_names():
            grid.add_row(Text(name, "bold"), Text(_summary(name)))
        out.print(grid)
        return
    if policy in recipe_names():
        text = recipe_text(policy)
    else:
        read = Policy.resolve(policy)
        parts = [read.model_copy(update={"extends": None}).to_toml()]
        if read.extends:
            parts.append(f"# -- recipe {read.extends} --\n\n{recipe_text(read.extends)}")
        text = "\n".join(parts)
    if out.is_terminal:
        out.print(Syntax(text, "toml", background_color="default"))
    else:
        print(text, end="")


def _summary(name: str) -> str:
    """The first sentence of the recipe's file, up to a colon or semicolon."""
    comment = itertools.takewhile(lambda x: x.startswith("#"), recipe_text(name).splitlines())
    return re.split(r"[.;] |\.$", " ".join(x.lstrip("# ") for x in comment))[0]


def init(file: Path, recipe: str) -> None:
    """Write a file to begin with, and the schema that its first line names."""
    base = Policy.recipe(recipe)  # or the nearest name
    schema_file = file.with_suffix(".schema.json")
    for path in (file, schema_file):
        if path.exists():
            raise NMError(f"{path} exists: remove it, or name another file")
    text = _TEMPLATE.format(
        schema=schema_file.name, recipe=recipe, rules=len(base.all_rules), summary=_summary(recipe)
    )
    Policy.loads(text, str(file))
    try:
        schema_file.write_text(_schema())
        file.write_text(text)
    except OSError as error:
        raise NMError(f"{error.filename}: cannot be written: {error.strerror}") from error
    print(file)


def schema() -> None:
    """The JSON Schema on stdout."""
    print(_schema(), end="")


def _schema() -> str:
    return json.dumps(Policy.model_json_schema(), indent=2) + "\n"


_TEMPLATE = """\
#:schema ./{schema}
# A policy of nmcompile. The first rule that matches a product in a role decides it; a product that
# no rule matches stays dense. `nmcompile policy check` reads this file, `nmcompile explain` shows
# what it does to a model.
schema = 1
extends = "{recipe}"  # {summary}

# execution = "auto"  # "simulate": mask, then multiply densely; "sparse": sparse tensor cores
# fallback = "dense"  # where "sparse" cannot be: "dense", "simulate" or "error"
# margin = 1.05       # the least predicted gain for which a product runs sparse
# refresh = 40        # of masks of weights: steps of the optimizer for which one is kept
# decay = 6e-6        # SR-STE: the masked part of a weight decays by so much in each step

# Rules of your own come before those of the recipe. Conditions first, all of which must hold:
#
# [[rule]]
# module = "*.mlp.*"         # glob on the path as in model.named_modules(); "re:..." for a regex
# class = "Linear"           # glob on the class of the innermost module
# op = ["linear", "conv"]    # also "grouped", "matmul"
# role = "wgrad"             # "fprop", "dgrad", "wgrad"; or a list
# dtype = "bfloat16"
# min_flops = 1e9            # smaller products are not matched
# prune = "gradient"         # which operand: "activation", "weight" or "gradient"
# format = "2:4"             # at most 2 of 4 neighbours are kept
# method = "mvue"            # "mse": keep the largest; "mvue": random and unbiased
# backward = "exact"         # in fprop: the gradient of the pruned product

[[rule]]
module = "*lm_head*"         # the last layer is sensitive: name your model's, or drop this rule
dense = true
"""

"""The public names, how they are called and that each says what it is: a change is deliberate."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nmcompile
from nmcompile import Masks, Meter, Policy, Report, Rule, Schedule, Tuned, functional
from nmcompile.masks.formats import NMFormat

NAMES = [
    "ArgumentError",
    "ExportError",
    "FormatError",
    "MaskError",
    "Masks",
    "Meter",
    "NMError",
    "NMFormat",
    "NMWarning",
    "OptionError",
    "Policy",
    "PolicyError",
    "Report",
    "Rule",
    "Schedule",
    "ScheduleError",
    "Tuned",
    "compile",
    "explain",
    "export",
    "functional",
    "last_report",
    "nm_sparse",
    "recipe_names",
    "rewrite",
    "targets",
    "telemetry",
    "tune",
]
#: How each function is called; types left out.
SIGNATURES: dict[Callable[..., Any], str] = {
    nmcompile.compile: (
        "(model, policy=None, *, each=None, dynamic=None, fullgraph=False, options=None)"
    ),
    nmcompile.explain: (
        "(model, *args, policy=None, target=None, each=None, cuda_graphs=False, **kwargs)"
    ),
    nmcompile.export: "(model, path, *, overwrite=False)",
    nmcompile.last_report: "()",
    nmcompile.nm_sparse: "(gm, example_inputs, *, mode=None, options=None)",
    nmcompile.recipe_names: "()",
    nmcompile.rewrite: "(gm, policy=None, *, weights=None)",
    nmcompile.targets: "()",
    nmcompile.telemetry: "(model, every=100, to=None, *, all_ranks=False)",
    nmcompile.tune: (
        "(model, batches, *, step=None, flops=None, loss=None, formats=('2:4',), "
        "prune=('activation', 'gradient'), target=None, cuda_graphs=False, noise_cost=None, "
        "state=None, progress=None)"
    ),
    Tuned.to_toml: "(self, path=None)",
    Tuned.to_json: "(self, path=None)",
    Tuned.plot: "(self, path)",
    functional.prune: "(x, format='2:4', dim=-1, method='mse', generator=None, offsets=None)",
    functional.keep_mask: "(x, format='2:4', dim=-1, method='mse', generator=None, offsets=None)",
    functional.inclusion_probability: "(x, format='2:4', dim=-1, method='mvue')",
    functional.block_threshold: "(x, format='2:4', dim=-1)",
    functional.compress: (
        "(x, dim=-1, layout='cusparselt_sm90', method='mse', generator=None, format='2:4')"
    ),
    Meter.step: "(self, at=None)",
    Meter.close: "(self)",
    NMFormat: "(n, m)",
    NMFormat.parse: "(text)",
    Policy.load: "(path)",
    Policy.loads: "(text, origin='<string>')",
    Policy.recipe: "(name)",
    Policy.resolve: "(value)",
    Policy.to_toml: "(self)",
    Policy.decide: "(self, site)",
    Policy.life_of: "(self, rule)",
    Rule.matches: "(self, site)",
    Report.to_json: "(self, path=None)",
    Report.from_json: "(path)",
    Report.to_html: "(self, path, title='nmcompile report')",
    Report.to_model_explorer: "(self, path, title='nmcompile report')",
    Schedule: "(model, phases, *, each=None, dynamic=None, fullgraph=False, options=None)",
    Masks: "(model)",
    Masks.tensors: "(self)",
    Masks.flip_rates: "(self)",
    Masks.refresh: "(self)",
    Masks.state_dict: "(self)",
    Masks.load_state_dict: "(self, state)",
    Schedule.step: "(self, at=None)",
    Schedule.warm_up: "(self, *args, **kwargs)",
    Schedule.state_dict: "(self)",
    Schedule.load_state_dict: "(self, state)",
    Schedule.transformers_callback: "(self)",
    Schedule.lightning_callback: "(self)",
}
PROPERTIES = {
    NMFormat: ["density"],
    Policy: ["all_rules", "digest", "keeps_masks"],
    Rule: ["conditions", "label", "line", "number", "ops", "origin", "recipe", "roles"],
    Report: ["kernels", "saved", "sites", "skipped", "totals"],
    Meter: ["rows", "steps"],
    Schedule: ["phases", "policy", "reports", "steps"],
    Tuned: ["policy"],
}
FIELDS = {
    Policy: [
        *("schema_", "extends", "execution", "fallback", "margin", "refresh", "decay", "rules"),
    ],
    Rule: [
        *("module", "class_", "op", "role", "dtype", "min_flops"),
        *("dense", "prune", "format", "method", "backward", "refresh", "decay"),
        *("execution", "fallback"),
    ],
}


def test_the_public_names() -> None:
    assert nmcompile.__all__ == NAMES
    assert set(NAMES) <= set(dir(nmcompile))


def test_each_has_a_docstring() -> None:
    values = [*(getattr(nmcompile, name) for name in NAMES), *SIGNATURES]
    values += [getattr(owner, name) for owner, names in PROPERTIES.items() for name in names]
    # Its own: a class would inherit one.
    assert [value for value in values if not vars_of(value).get("__doc__", value.__doc__)] == []


def vars_of(value: Any) -> dict[str, Any]:
    return dict(vars(value)) if isinstance(value, type) else {}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_how_it_is_called(function: Callable[..., Any]) -> None:
    given = inspect.signature(function).parameters.values()
    words = [str(p.default) if isinstance(p.default, StrEnum) else p.default for p in given]
    plain = [p.replace(annotation=p.empty, default=w) for p, w in zip(given, words, strict=True)]
    assert str(inspect.Signature(plain)) == SIGNATURES[function]


def test_no_public_function_is_left_out() -> None:
    named = [value for name in NAMES if inspect.isfunction(value := getattr(nmcompile, name))]
    masks = [
        value
        for name, value in inspect.getmembers(functional, inspect.isfunction)
        if value.__module__ == functional.__name__ and not name.startswith("_")
    ]
    assert {*named, *masks} <= set(SIGNATURES)


@pytest.mark.parametrize("owner", PROPERTIES, ids=lambda c: c.__name__)
def test_the_properties_of_a_class(owner: type) -> None:
    found = [n for n, v in vars(owner).items() if isinstance(v, property) and n[0] != "_"]
    own = [name for name in found if not name.startswith("model_")]
    assert sorted(own) == PROPERTIES[owner]


@pytest.mark.parametrize("table", FIELDS, ids=lambda c: c.__name__)
def test_the_fields_of_a_policy(table: Any) -> None:
    assert list(table.model_fields) == FIELDS[table]


# Names that are found on first use


def test_a_type_checker_is_told_of_the_same_names_and_homes() -> None:
    tree = ast.parse(Path(nmcompile.__file__).read_text())
    (block, *_) = [n for n in tree.body if isinstance(n, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"nmcompile.{home}" for name, home in nmcompile._HOMES.items()}
    modules = [n for n in NAMES if isinstance(getattr(nmcompile, n), ModuleType)]
    assert told == {**homes, **dict.fromkeys(modules, "nmcompile")}
    assert sorted(told) == NAMES


def test_all_names_can_be_imported_at_once() -> None:
    names: dict[str, Any] = {}
    exec("from nmcompile import *", names)
    assert {n: names[n] for n in NAMES} == {n: getattr(nmcompile, n) for n in NAMES}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nmcompile' has no attribute 'explian'"):
        nmcompile.explian  # noqa: B018
    with pytest.raises(ImportError, match="explian"):
        from nmcompile import explian  # noqa: F401
    assert not hasattr(nmcompile, "torch")


def test_the_errors_are_the_classes_that_are_raised() -> None:
    assert nmcompile.NMWarning is nmcompile.errors.NMWarning
    with pytest.raises(nmcompile.PolicyError) as caught:
        Policy.recipe("fll")
    assert isinstance(caught.value, nmcompile.NMError)
    assert isinstance(caught.value, ValueError)

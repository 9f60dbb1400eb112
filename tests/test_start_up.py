"""What an import costs, counted in modules: seconds would depend on the machine.

Each case is a process of its own, in which nothing is imported yet.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nmcompile

ROOT = Path(__file__).parents[1]


def run(code: str, **env: str) -> str:
    """What a fresh process prints; it must end well."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LOADED = """
import sys
{first}
before = set(sys.modules)
{then}
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""


@pytest.mark.parametrize("first", ["", "import torch"])
def test_the_package_loads_nothing_but_itself(first: str) -> None:
    loaded = run(LOADED.format(first=first, then="import nmcompile")).split()
    assert set(loaded) - sys.stdlib_module_names == {"nmcompile"}


@pytest.mark.parametrize("then", ["from nmcompile import PolicyError", "import nmcompile.gemm"])
def test_errors_and_the_vocabulary_need_the_standard_library_alone(then: str) -> None:
    loaded = run(LOADED.format(first="", then=then)).split()
    assert set(loaded) - sys.stdlib_module_names == {"nmcompile"}


def test_policies_need_neither_pytorch_nor_what_reports_need() -> None:
    loaded = run(LOADED.format(first="", then="from nmcompile import Policy, Rule, recipe_names"))
    others = {"torch", "numpy", "triton", "rich", "jinja2", "sympy"}
    assert others.isdisjoint(loaded.split())
    assert {"nmcompile", "pydantic"} <= set(loaded.split())


def test_all_that_is_tested_of_policies_runs_without_pytorch() -> None:
    # conftest.py, which imports torch, is left out, and so are plugins, which might.
    code = """
import sys, pytest
of_models = [f"--ignore=tests/policy/test_{name}.py" for name in ("blocks", "paths")]
given = ["--noconftest", "-q", "-p", "no:cacheprovider"]
failed = pytest.main(["tests/policy", *given, *of_models])
assert "nmcompile.policy.rule" in sys.modules
assert not [n for n in sys.modules if n.split(".")[0] == "torch"], "torch was imported"
sys.exit(failed)
"""
    assert " passed" in run(code, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_a_warning_is_filtered_by_its_name_before_anything_is_imported() -> None:
    code = """
import sys, warnings
assert "torch" not in sys.modules
from nmcompile import Policy
twice = {"rule": [{"dense": True}, {"dense": True}]}
try:
    Policy.resolve(twice)
except Warning as warning:
    print(type(warning).__name__)
"""
    assert run(code, PYTHONWARNINGS="error::nmcompile.errors.NMWarning") == "NMWarning\n"


@pytest.mark.slow
def test_the_backend_is_found_by_its_name_with_no_import() -> None:
    code = """
import sys, torch
assert "nmcompile" not in sys.modules
torch.manual_seed(0)
model, x = torch.nn.Linear(16, 16), torch.randn(8, 16)
found = torch.compile(model, backend="nm_sparse")(x)
assert not torch.allclose(found, model(x))
from nmcompile import functional
pruned = functional.prune(x)
torch.testing.assert_close(found, torch.nn.functional.linear(pruned, model.weight, model.bias))
print(sys.modules["nmcompile"].last_report().totals.pruned_sites)
"""
    assert run(code) == "2\n"  # fprop and wgrad


# To import a module sets its name in its package, whatever stood there


EVERY_MODULE = """
import importlib, pkgutil, random, sys
import nmcompile
public = {name: getattr(nmcompile, name) for name in nmcompile.__all__ if EARLY}
modules = [m.name for m in pkgutil.walk_packages(nmcompile.__path__, "nmcompile.")]
random.Random(SEED).shuffle(modules)
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert error.name == "triton"
    assert all(getattr(nmcompile, name) is value for name, value in public.items()), module
for module in set(modules) & set(sys.modules):
    package, _, name = module.rpartition(".")
    assert getattr(sys.modules[package], name) is sys.modules[module], f"{module} is shadowed"
for name, home in nmcompile._HOMES.items():
    assert getattr(nmcompile, name) is getattr(sys.modules[f"nmcompile.{home}"], name), name
print(len(modules))
"""


@pytest.mark.parametrize(("seed", "early"), [(0, True), (1, False)], ids=["names", "modules"])
def test_no_module_is_shadowed_and_shadows_no_name_in_any_order(seed: int, early: bool) -> None:
    code = EVERY_MODULE.replace("SEED", str(seed)).replace("EARLY", str(early))
    assert int(run(code)) > 80


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {m.name for m in pkgutil.iter_modules(nmcompile.__path__)}
    assert modules & set(nmcompile.__all__) == {"functional"}

"""TARGET: files and modules, functions and tuples; what it is not, in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nmcompile.cli.named import TargetError, load
from tests.cli.samples import CASE, TUNED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nm_case.py").write_text(CASE)
    (tmp_path / "nm_broken.py").write_text("import not_installed_at_all\n")
    (tmp_path / "nm_package").mkdir()
    (tmp_path / "nm_package" / "inner.py").write_text(CASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("nm_case", "nm_broken", "nm_package", "nm_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "target",
    [
        "nm_case.py:case",
        "nm_case:case",
        "nm_package.inner:case",
        "nm_package/inner.py:case",
        "nm_case.py:holder.inner",
        "nm_case.py:short",
    ],
)
def test_a_target_gives_a_model_and_its_inputs(folder: Path, target: str) -> None:
    named = load(target)
    assert named.model(*named.args, **named.kwargs).shape == (4, 8)


def test_a_fourth_part_is_for_tune_alone(folder: Path) -> None:
    (folder / "nm_tuned.py").write_text(TUNED)
    assert load("nm_tuned.py:one").batches is None
    named = load("nm_tuned.py:logits")
    assert len(named.batches) == 3
    assert named.model(*named.args).shape == (4, 8)


def test_a_file_imports_what_lies_beside_it(folder: Path) -> None:
    (folder / "nm_package" / "beside.py").write_text("from inner import case\n")
    assert len(load("nm_package/beside.py:case").args) == 1


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nm_case", "write package.module:attribute or file.py:attribute"),
        ("nm_case.py:", "write package.module:attribute"),
        ("gone.py:case", "no file gone.py in "),
        ("gone:case", "no module named 'gone'"),
        ("nm_package.gone:case", "no module named 'nm_package.gone'"),
        ("not a module:case", "'not a module' is no module's name"),
        ("nm_case.py:caze", "nm_case.py has no attribute 'caze': did you mean 'case'?"),
        ("nm_case.py:alone", "is a model without inputs: write a function that returns"),
        ("nm_case.py:number", "gives int: write a function"),
        ("nm_case.py:one", "gives a tuple of 1: write a function"),
        ("nm_case.py:bare", "the inputs are a Tensor, not a tuple"),
        ("nm_case.py:odd", "kwargs is a list, not a mapping"),
    ],
)
def test_what_is_none_is_an_error(folder: Path, target: str, sentence: str) -> None:
    with pytest.raises(TargetError) as error:
        load(target)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_inside_of_the_users_file_pass_through(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load("nm_broken:case")
    with pytest.raises(ValueError, match="the data is not here"):
        load("nm_case.py:fails")


def test_a_model_can_be_made_without_values(folder: Path) -> None:
    model, (x,), *_ = load("nm_case.py:case", meta=True)
    assert x.is_meta
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(TargetError, match="is no function: its tensors are made before --meta"):
        load("nm_case.py:ready", meta=True)


def test_a_function_is_a_model_too(folder: Path) -> None:
    assert load("nm_case.py:nothing").model is torch.relu

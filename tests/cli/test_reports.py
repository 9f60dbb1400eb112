"""``explain``, ``diff``, ``kernels`` of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nmcompile.cli.reports import differences, explained, findings, show_kernels
from nmcompile.errors import NMError
from tests.cli.samples import CASE


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nm_reports_case.py").write_text(CASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "nm_reports_case.py"


def test_a_difference_names_both_treatments_and_both_rules(file: str) -> None:
    full, weights = (explained(f"{file}:case", p, None) for p in ("full", "weights"))
    assert differences(full, full) == []
    changes = differences(full, weights)
    assert {(c.module, c.role) for c in changes} == {
        (module, role) for module in "02" for role in ("fprop", "dgrad")
    }
    first = changes[0]
    assert first.before == "activation 2:4 mse, simulate"
    assert first.after == "weight 2:4 transposable, simulate"
    assert (first.rule_before, first.rule_after) == (
        "recipe full, rule 1",
        "recipe weights, rule 1",
    )


def test_exact_backward_is_a_difference(file: str) -> None:
    full, exact = (explained(f"{file}:case", p, None) for p in ("full", "full-exact"))
    assert {c.after for c in differences(full, exact)} == {
        "activation 2:4 mse, simulate, exact backward"
    }


def test_two_models_cannot_be_compared(file: str) -> None:
    full, nothing = (explained(f"{file}:{name}", "full", None) for name in ("case", "nothing"))
    with pytest.raises(NMError, match="another model the second time"):
        differences(full, nothing)


def test_what_strict_does_not_accept(file: str) -> None:
    assert findings(explained(f"{file}:case", "full", None)) == []
    with pytest.warns(match="nothing is pruned"):
        declined = explained(f"{file}:case", "full", "h100")
    found = findings(declined)
    assert len(found) == 6
    assert found[0].startswith("0 fprop: the policy prunes it, and it is dense: ")


def test_kernels_are_written_as_files(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    report = explained(f"{file}:large", "full", "h100")
    show_kernels(report, tmp_path / "out")
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert all("@triton.jit" in p.read_text() for p in paths)
    show_kernels(report, None)
    shown = capsys.readouterr().out
    assert all(p.read_text() in shown for p in paths)

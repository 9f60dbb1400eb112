"""Files, options and what is missing."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

from benchmarks.gpu_check import __main__ as entry
from benchmarks.gpu_check.cli import app, choose
from benchmarks.gpu_check.events import Results
from benchmarks.records import RESULTS
from tests.benchmarks.gpu_check.rehearsal import rehearse, statuses


def test_worker_processes_write_files(tmp_path):
    data = rehearse(tmp_path, "--only", "probe/float16", "--lanes", "1")
    assert statuses(data) == {"probe/float16": "ok"}
    assert data["rehearsal"] is True
    assert data["environment"]["torch"] == torch.__version__
    assert data["sections"]["probe"]["environment"]["gpu"] == "rehearsal"
    assert (tmp_path / "gpu_check_rehearsal.csv").exists()


def test_a_later_run_keeps_cases_that_it_does_not_run(tmp_path):
    rehearse(tmp_path, "--inline", "--only", "products/copy")
    data = rehearse(tmp_path, "--inline", "--only", "probe/float16")
    assert statuses(data) == {"probe/float16": "ok", "products/copy": "ok"}
    with (tmp_path / "gpu_check_rehearsal.csv").open(newline="") as file:
        assert [row["provider"] for row in csv.DictReader(file)] == ["copy"]


def test_a_rehearsal_is_refused_among_results():
    result = CliRunner().invoke(app, ["--rehearse", "--out", str(RESULTS / "x")])
    assert result.exit_code == 2
    assert "figures of a rehearsal" in " ".join(result.output.split())
    with pytest.raises(ValueError, match="rehearsal"):
        Results(True, {"probe": 1}).save([RESULTS])


def test_a_gpu_is_needed_without_rehearse(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = ["--section", "probe", "--lanes", "1", "--out", str(tmp_path), "--minutes", "1"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "torch sees no GPU" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--section", "speed"], "is not a section"),
        (["--only", "nothing*"], "no case matches"),
        (["--inline"], "--inline is for --rehearse"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_missing_packages_are_named(monkeypatch):
    assert entry.missing_packages() == []
    monkeypatch.setitem(entry.NEEDED, "no_such_module", "no-such-package")
    assert entry.missing_packages() == ["no-such-package"]
    with pytest.raises(SystemExit, match="cannot start: no-such-package not importable"):
        entry.main()


def test_sections_are_chosen_in_their_order():
    names = [case.section for case in choose("training,probe", "", True)]
    assert list(dict.fromkeys(names)) == ["probe", "training"]
    assert choose("verdict", "", True) == []

"""Files, options and what is missing."""

from __future__ import annotations

import csv
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

from benchmarks.gpu_check import __main__ as entry
from benchmarks.gpu_check import cli, events, supervise
from benchmarks.gpu_check.cli import app, choose
from benchmarks.gpu_check.events import Results
from benchmarks.records import RESULTS
from tests.benchmarks.gpu_check import fakes
from tests.benchmarks.gpu_check.rehearsal import rehearse, statuses


def plain(output: str) -> str:
    """The text in the box of an error."""
    return " ".join(output.replace("│", " ").split())


def test_worker_processes_write_files(tmp_path):
    given = ["--only", "probe/float16", "--lanes", "1", "--cache", str(tmp_path / "carried")]
    data = rehearse(tmp_path, *given)
    assert data["environment"]["caches"] == "0 kernels brought along"
    assert statuses(data) == {"probe/float16": "ok"}
    assert data["rehearsal"] is True
    assert data["environment"]["torch"] == torch.__version__
    assert data["sections"]["probe"]["environment"]["gpu"] == "rehearsal"
    assert (tmp_path / "gpu_check_rehearsal.csv").exists()


def test_a_later_run_keeps_cases_that_it_does_not_run(tmp_path):
    rehearse(tmp_path, "--inline", "--only", "compress/copy")
    data = rehearse(tmp_path, "--inline", "--only", "probe/float16")
    assert statuses(data) == {"probe/float16": "ok", "compress/copy": "ok"}
    with (tmp_path / "gpu_check_rehearsal.csv").open(newline="") as file:
        assert [row["provider"] for row in csv.DictReader(file)] == ["copy"]


def test_a_rehearsal_is_refused_among_results():
    result = CliRunner().invoke(app, ["--rehearse", "--out", str(RESULTS / "x")])
    assert result.exit_code == 2
    assert "figures of a rehearsal" in plain(result.output)
    with pytest.raises(ValueError, match="rehearsal"):
        Results(True, {"probe": 1}).save([RESULTS])


def test_a_gpu_that_does_nothing_is_refused_among_results(monkeypatch, tmp_path):
    gpu = "NVIDIA H100 80GB HBM3 (null GPU)"
    monkeypatch.setenv("FAKE_GPU", gpu)  # the worker is another process
    monkeypatch.setattr(supervise, "WORKER", fakes.obey)
    results = tmp_path / "results"
    monkeypatch.setattr(events, "RESULTS", results)
    for given in ([], ["--out", str(results / "below")]):
        monkeypatch.setattr(cli, "RESULTS", results)
        result = CliRunner().invoke(app, ["--section", "probe", *given])
        assert result.exit_code == 2
        assert "figures of NVIDIA H100 80GB HBM3 (null GPU)" in plain(result.output)
    assert not results.exists()
    result = CliRunner().invoke(app, ["--section", "probe", "--out", str(tmp_path / "else")])
    assert result.exit_code == 0, result.output
    data = Results(False, {"probe": 1})
    data.environment = {"gpu": gpu}
    with pytest.raises(ValueError, match="null GPU"):
        data.save([results])


def test_logs_and_figures_reach_out_though_everything_crashes(monkeypatch, tmp_path):
    monkeypatch.setattr(supervise, "WORKER", fakes.refuse)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    given = ["--section", "probe", "--out", str(tmp_path / "results"), "--lanes", "1"]
    assert CliRunner().invoke(app, given).exit_code == 2
    assert "no GPU" in (tmp_path / "out" / "gpu_check.log").read_text()

    monkeypatch.setattr(supervise, "WORKER", fakes.obey)
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    for folder in ("results", "out"):
        assert (tmp_path / folder / "gpu_check_none.json").exists()


def test_figures_are_saved_while_a_case_runs(monkeypatch, tmp_path):
    """A run that is killed has left what it measured."""
    monkeypatch.setattr(cli, "_SAVE_EVERY", 0.0)
    seen = []
    original = Results.save

    def save(self, *args):
        seen.append([len(case["rows"]) for *_, case in self.cases()])
        return original(self, *args)

    monkeypatch.setattr(Results, "save", save)
    rehearse(tmp_path, "--inline", "--only", "gain/* fprop")
    assert [1] in seen


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
        (["--only", "gain/nothing*"], "no case matches"),
        (["--only", "nothing*"], "no case matches"),
        (["--inline"], "--inline is for --rehearse"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in plain(result.output)


def test_missing_packages_are_named(monkeypatch):
    assert entry.missing_packages() == []
    monkeypatch.setitem(entry.NEEDED, "no_such_module", "no-such-package")
    assert entry.missing_packages() == ["no-such-package"]
    with pytest.raises(SystemExit, match="cannot start: no-such-package not importable"):
        entry.main()


def test_sections_are_chosen_in_their_order():
    names = [case.section for case in choose("probe,llama,recipes", "", True)]
    assert list(dict.fromkeys(names)) == ["llama", "probe", "recipes"]
    assert choose("verdict", "", True) == []
    assert not {"products", "recipes"} & {case.section for case in choose("", "", True)}
    assert {case.section for case in choose("", "recipes/llama*", True)} == {"recipes"}


def test_all_that_is_needed_is_carried():
    """Nothing of ``requirements.txt`` needs what is neither in it nor comes with torch."""
    lines = (Path(entry.__file__).with_name("requirements.txt")).read_text().splitlines()
    carried = {line for line in lines if line and not line.startswith("#")}
    assert set(entry.NEEDED.values()) - {"torch"} <= carried
    for name in carried:
        for needed in metadata.requires(name) or []:
            found = re.match(r"([\w.-]+)[^;]*(?:;(.*))?$", needed)
            if not found[2]:  # neither an extra nor another system
                assert found[1].replace("_", "-").lower() in carried, f"{name} needs {needed}"

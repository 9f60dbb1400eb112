"""The commands: exit codes, what goes to which stream, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nmcompile.cli import app as module
from nmcompile.cli.app import FINDINGS, USAGE, app, run
from tests.cli.samples import CASE


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nm_app_case.py").write_text(CASE)
    (tmp_path / "mine.toml").write_text(
        'schema = 1\nextends = "full"\n[[rule]]\nmodule = "gone.*"\ndense = true\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "nm_app_case.py:case"


def code(*arguments: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    return int(ended.value.code or 0)


def test_explain_ends_with_0_and_with_strict_1_where_a_rule_decides_nothing(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("explain", case, "--policy", "mine.toml") == 0
    assert "6 of 6 products pruned" in capsys.readouterr().out
    assert code("explain", case, "--policy", "mine.toml", "--strict") == FINDINGS
    shown = capsys.readouterr()
    assert "6 of 6 products pruned" in shown.out
    assert "rule mine.toml:3 (rule 1) decided nothing" in shown.err


def test_json_is_one_document(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("explain", case, "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 3
    assert code("diff", case, "-p", "full", "-p", "dense", "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_a_report_that_was_written_is_read_again(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("explain", case, "--json") == 0
    document = capsys.readouterr().out
    (tmp_path / "report.json").write_text(document)
    assert code("explain", "report.json", "--json", "--model-explorer", "graphs.json") == 0
    shown = capsys.readouterr()
    assert shown.out == document
    assert shown.err.startswith("graphs: graphs.json, to be opened with `model-explorer ")
    assert json.loads((tmp_path / "graphs.json").read_text())["label"] == "report.json"
    for option in (
        ("-p", "full"),
        ("--target", "h100"),
        ("--cuda-graphs",),
        ("--each", "a"),
        ("--meta",),
    ):
        assert code("explain", "report.json", *option) == USAGE
        assert "report.json is a report, in which all is decided" in capsys.readouterr().err


def test_a_model_without_values_is_explained_alike(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("explain", case) == 0
    plain = capsys.readouterr().out
    assert code("explain", case, "--meta") == 0
    assert capsys.readouterr().out == plain


def test_diff_ends_with_1_where_it_is_asked_to(case: str) -> None:
    assert code("diff", case, "-p", "full", "-p", "dense", "--exit-code") == FINDINGS
    assert code("diff", case, "-p", "full", "-p", "full", "--exit-code") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explain", "gone.py:case"], "no file gone.py"),
        (["explain", "{case}", "-p", "fulll"], "did you mean 'full'?"),
        (["explain", "{case}", "-t", "h10"], "did you mean 'h100'?"),
        (["explain"], "Missing argument 'TARGET'"),
        (["explian", "x"], "No such command 'explian'"),
        (["diff", "{case}", "-p", "full"], "give --policy twice, not 1 times"),
        (["kernels", "{case}"], "no kernel would be generated on h100"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_mistake_in_the_call_is_one_sentence_on_stderr_and_2(
    case: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert code(*(a.format(case=case) for a in arguments)) == USAGE
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_debug_shows_the_traceback(case: str) -> None:
    from nmcompile.cli.named import TargetError

    with pytest.raises(TargetError):
        run(["--debug", "explain", "gone.py:case"])


@pytest.mark.filterwarnings("default")
def test_our_warnings_are_a_line_on_stderr(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("explain", case, "-t", "h100") == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    assert line.startswith("nmcompile: warning: nothing is pruned")


def test_every_command_says_what_it_does_and_how_to_call_it() -> None:
    runner = CliRunner()
    for name in ("explain", "diff", "kernels"):
        text = runner.invoke(app, [name, "--help"]).output
        assert f"Example: nmcompile {name}" in text
    assert runner.invoke(app, ["--version"]).output.startswith("nmcompile 0.")


def test_policies_are_checked_without_pytorch(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    program = (
        "import sys\n"
        "from nmcompile.cli.app import run\n"
        "try:\n    run(sys.argv[1:])\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    for command in (["policy", "init", str(file)], ["policy", "check", str(file)]):
        subprocess.run([sys.executable, "-c", program, *command], check=True)


def test_the_entry_point_is_this_one() -> None:
    from importlib.metadata import entry_points

    named = {e.value for e in entry_points(group="console_scripts") if e.name == "nmcompile"}
    assert named <= {f"{module.__name__}:run"}


def test_memory_is_not_freed_object_by_object_at_the_end(case: str) -> None:
    script = (
        "import atexit, gc, sys; from nmcompile.cli.app import run\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0, file=sys.stderr))\n"
        "run(['policy', 'show', 'full'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "True\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", [["policy", "show", "full"], ["--version"]])
def test_an_output_that_cannot_be_written_is_one_sentence(command: list[str]) -> None:
    script = f"from nmcompile.cli.app import run; run({command})"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True
        )
    message = "nmcompile: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (USAGE, message)

"""``nmcompile tune``: files, what goes to stdout, and mistakes before anything is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nmcompile import Policy
from nmcompile.cli.app import USAGE, run
from tests.cli.samples import TUNED

CASE = "nm_tuned.py:case"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nm_tuned.py").write_text(TUNED)
    (tmp_path / "there.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def code(*arguments: str) -> int:
    """The exit code of ``nmcompile tune``."""
    with pytest.raises(SystemExit) as ended:
        run(["tune", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_it_writes_a_policy_that_check_accepts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--out", "policy.toml", "--plot", "curve.png", "--state", "measured")
    assert code(CASE, "--budget", "flops=0.5", "--batches", "3", *files) == 0
    shown = capsys.readouterr()
    assert "what pruning costs, and what was chosen" in shown.out
    assert "policy: policy.toml" in shown.err
    assert (folder / "curve.png").stat().st_size > 1000
    assert Policy.load("policy.toml").rules
    with pytest.raises(SystemExit) as ended:
        run(["policy", "check", "policy.toml", "--model", CASE])
    assert ended.value.code == 0
    assert "all decide something" in capsys.readouterr().out
    kept = (folder / "measured").read_bytes()
    assert code(CASE, "-b", "flops=0.4", "--batches", "3", "--state", "measured") == 0
    assert (folder / "measured").read_bytes() == kept  # nothing was measured again
    assert code(CASE, "-b", "flops=0.4", "--batches", "2", "--state", "measured") == USAGE
    assert "was measured on another model, other batches" in capsys.readouterr().err


@pytest.mark.slow
def test_stdout_is_a_policy_or_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert code(CASE, "--budget", "flops=0.3", "--batches", "2", "--formats", "2:4,1:2") == 0
    assert Policy.loads(capsys.readouterr().out).rules
    assert code(CASE, "--budget", "flops=0.3", "--batches", "2", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["schema_version"], data["batches"]) == (1, 2)
    assert data["pruned_share"] >= 0.3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CASE], "Missing option '--budget'"),
        ([CASE, "-b", "0.5"], "--budget 0.5: write flops=0.5"),
        ([CASE, "-b", "flop=0.5"], "did you mean 'flops'?"),
        ([CASE, "-b", "flops=half"], "'half' is no number"),
        ([CASE, "-b", "flops=2"], "flops = 2.0: write a share of the FLOPs"),
        ([CASE, "-b", "flops=0.5", "--formats", "4:2"], "4:2"),
        ([CASE, "-b", "flops=0.5", "--formats", ","], "at least one word"),
        ([CASE, "-b", "flops=0.5", "--prune", "act"], "did you mean 'activation'?"),
        ([CASE, "-b", "flops=0.5", "--batches", "0"], "greater than or equal to 1"),
        ([CASE, "-b", "flops=0.5", "--batches", "1"], "tune needs at least 2"),
        ([CASE, "-b", "flops=0.5", "-t", "h10"], "did you mean 'h100'?"),
        ([CASE, "-b", "flops=0.5", "-o", "there.toml"], "there.toml exists: remove it"),
        ([CASE, "-b", "flops=0.5", "-o", "there.toml/x.toml"], "cannot be written"),
        ([CASE, "-b", "flops=0.5", "--state", "there.toml/x"], "cannot be written"),
        (["nm_tuned.py:one", "-b", "flops=0.5"], "gives no batches: tune measures over several"),
        (["nm_tuned.py:odd", "-b", "flops=0.5"], "batches is a int: tune measures over several"),
        (["nm_tuned.py:logits", "-b", "flops=0.5"], "gives a tensor of shape (4, 8)"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert code(*arguments) == USAGE
    shown = capsys.readouterr()
    assert sentence in " ".join(shown.err.split())
    assert shown.out == ""
    assert not Path("policy.toml").exists()

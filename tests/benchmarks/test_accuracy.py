"""The accuracy study: its data are split as claimed, and its command line does what it says."""

from __future__ import annotations

import csv
import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

for needed in ("matplotlib", "numpy", "scipy", "sklearn", "typer"):
    pytest.importorskip(needed, reason="pip install nmcompile[study]")


def test_text_is_split_by_file_and_by_name_alone() -> None:
    from benchmarks.accuracy.data import split_files, stdlib_files

    files = stdlib_files()
    train, held_out = split_files(files)
    assert sorted(train + held_out) == files
    assert not set(train) & set(held_out)
    assert 0.05 < len(held_out) / len(files) < 0.25
    assert split_files(files[::-1])[1] == held_out[::-1]
    assert split_files(files[::2])[1] == [path for path in held_out if path in files[::2]]
    assert stdlib_files() == files
    assert 2e6 < sum(path.stat().st_size for path in files) < 4e6


def test_text_batches() -> None:
    from benchmarks.accuracy.data import Text

    data = Text.load(batch=4, context=64)
    x, y = next(data.batches(seed=1))
    assert x.shape == y.shape == (4, 64)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x, next(data.batches(seed=1))[0])
    assert not torch.equal(x, next(data.batches(seed=2))[0])
    chunks = [x for x, _ in data.validation()]
    assert len({chunk.shape for chunk in chunks}) == 1
    assert data.held_out.numel() > sum(chunk.numel() for chunk in chunks)


def test_digits_batches() -> None:
    from benchmarks.accuracy.data import HELD_OUT, Digits

    data = Digits.load(batch=32)
    epoch = list(itertools.islice(data.batches(seed=0), 1257 // 32))
    again = list(itertools.islice(data.batches(seed=0), 1257 // 32))
    assert {x.shape for x, _ in epoch} == {(32, 1, 8, 8)}
    assert all(torch.equal(x, same) for (x, _), (same, _) in zip(epoch, again, strict=True))
    ((images, labels),) = data.validation()
    assert len(labels) == HELD_OUT
    assert labels.bincount().min() > 50  # stratified
    seen = {tuple(image.flatten().tolist()) for image in data.train[0]}
    assert not any(tuple(image.flatten().tolist()) in seen for image in images)


@pytest.mark.parametrize("network", ["ResNet", "ViT", "GPT"])
def test_initialise_is_in_place_and_reproducible(network: str) -> None:
    from benchmarks.accuracy import models

    net = getattr(models, network)()
    models.initialise(net, seed=1)
    places = [p.data_ptr() for p in net.parameters()]
    first = [t.clone() for t in net.state_dict().values()]
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    models.initialise(net, seed=1)
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(torch.equal(a, b) for a, b in zip(first, net.state_dict().values(), strict=True))


def _runs(arm: str, accuracies: list[float]) -> list:
    from benchmarks.accuracy.training import Run

    return [
        Run("vit", arm, seed, 9, 0.1, 0.2, a, 0.2, a, 1.0, 1.0, 0.5, 0.25, [(9, 0.1, 0.2, a)])
        for seed, a in enumerate(accuracies)
    ]


def test_one_image_is_no_finding() -> None:
    from benchmarks.accuracy.results import run_rows
    from benchmarks.accuracy.studies import STUDIES
    from benchmarks.accuracy.summary import table

    study, image = STUDIES["digits"], 1 / 540
    dense = [0.97, 0.98, 0.96]
    runs = _runs("dense", dense)
    runs += _runs("activations", [a - image for a in dense])
    runs += _runs("full", [a - 0.05 + e for a, e in zip(dense, (0, image, -image), strict=True)])
    cells = {row[0]: row for row in table(study, run_rows(runs, study.metric), "vit")}
    assert cells["dense"][4:6] == ["97.00 ± 1.00", ""]
    assert cells["activations"][5] == "-0.19 ± 0.00"
    assert cells["full"][5] == "-5.00 ± 0.19 *"


def test_an_interrupted_study_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from benchmarks.accuracy import __main__ as accuracy
    from benchmarks.accuracy import workers

    outcome = workers.Outcome(_runs("dense", [0.5]), stopped="interrupted")
    monkeypatch.setattr(accuracy, "train", lambda *_: outcome)
    earlier = tmp_path / "accuracy_digits.csv"
    earlier.write_text("an earlier result")
    result = CliRunner().invoke(accuracy.app, ["digits", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert earlier.read_text() == "an earlier result"
    assert len((tmp_path / "accuracy_digits_partial.csv").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["digits", "text"])
def test_the_published_page_is_made_of_the_published_rows(name: str) -> None:
    from benchmarks.accuracy.results import read_csv
    from benchmarks.accuracy.studies import STUDIES
    from benchmarks.accuracy.summary import markdown
    from benchmarks.records import RESULTS

    rows = read_csv(RESULTS / f"accuracy_{name}.csv")
    page = (RESULTS / f"accuracy_{name}.md").read_text()
    assert page == markdown(STUDIES[name], rows)


def works(channel: Any) -> None:
    """Finishes each job at once, but dies of those of the arm ``full``."""
    while True:
        channel.send(("free", None, None))
        if (job := channel.recv()) is None:
            return
        channel.send(("start", job, None))
        for run in _runs(job.arm, [0.5] * len(job.seeds)):
            if job.arm == "full":
                os.kill(os.getpid(), signal.SIGSEGV)
            channel.send(("step", job, (1, run.seed, 0.5)))
            channel.send(("run", job, run))
        channel.send(("end", job, "done"))


def raises(channel: Any) -> None:
    channel.send(("free", None, None))
    channel.send(("failed", channel.recv(), "Traceback: so it is"))


def _trained(worker: Any, arms: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """The outcome of a job for each arm in two workers, and what was printed."""
    from rich.console import Console

    from benchmarks.accuracy import workers

    monkeypatch.setattr(workers, "WORKER", worker)
    jobs = [workers.Job("digits", "vit", arm, (0, 1)) for arm in arms.split()]
    console = Console(file=io.StringIO(), width=120)
    return workers.train(jobs, 2, console), console.file.getvalue()


def test_workers_share_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = "dense gradients-1:2 gradients-2:4 activations mse-gradients"
    outcome, printed = _trained(works, arms, monkeypatch)
    assert outcome.stopped is None
    assert sorted(run.arm for run in outcome.runs) == sorted(arms.split() * 2)
    assert all(f"vit {arm}: done" in printed for arm in arms.split())


def test_a_worker_that_dies_or_fails_ends_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = _trained(works, "dense full", monkeypatch)
    assert outcome.stopped == "a worker process ended with exit code -11"
    assert {run.arm for run in outcome.runs} <= {"dense"}
    outcome, _ = _trained(raises, "dense", monkeypatch)
    assert outcome.stopped == "vit dense failed:\nTraceback: so it is"


def test_ctrl_c_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.accuracy import workers

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_follow", interrupt)
    outcome, _ = _trained(works, "dense", monkeypatch)
    assert (outcome.runs, outcome.stopped) == ([], "interrupted")


@pytest.mark.slow
def test_digits_study(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "digits", "--out", str(tmp_path)]
    command += ["--networks", "vit", "--arms", "dense,full", "--seeds", "1", "--steps", "48"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"accuracy_digits{end}" for end in (".csv", "_curves.csv", ".md", ".png")}

    with (tmp_path / "accuracy_digits.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"dense", "full"}
    assert rows["dense"].keys() >= {
        *("network", "seed", "steps", "train_loss", "validation_loss", "validation_accuracy"),
        *("seconds", "machine", "torch", "nmcompile", "commit", "time"),
    }
    assert float(rows["dense"]["pruned_flops_share"]) == 0
    assert float(rows["full"]["pruned_flops_share"]) == 1

    with (tmp_path / "accuracy_digits_curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    for arm in rows:
        losses = [float(row["train_loss"]) for row in curves if row["arm"] == arm]
        assert losses[-1] < 0.7 * losses[0]
        assert any(row["validation_accuracy"] for row in curves if row["arm"] == arm)
    assert "| full | 100.0% |" in (tmp_path / "accuracy_digits.md").read_text()

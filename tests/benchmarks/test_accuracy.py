"""The accuracy study: its data are split as claimed, and its command line does what it says."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

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
    from benchmarks.accuracy.images import HELD_OUT, digits

    data = digits(batch=32)
    epoch = list(itertools.islice(data.batches(seed=0), 1257 // 32))
    again = list(itertools.islice(data.batches(seed=0), 1257 // 32))
    assert {x.shape for x, _ in epoch} == {(32, 1, 8, 8)}
    assert all(torch.equal(x, same) for (x, _), (same, _) in zip(epoch, again, strict=True))
    ((images, labels),) = data.validation()
    assert len(labels) == HELD_OUT
    assert labels.bincount().min() > 50  # stratified
    seen = {tuple(image.flatten().tolist()) for image in data.train[0]}
    assert not any(tuple(image.flatten().tolist()) in seen for image in images)


def _idx(path: Path, array: Any) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = head + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_a_folder_of_idx_files(tmp_path: Path) -> None:
    import numpy as np

    from benchmarks.accuracy.images import from_folder

    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(256, size=(12, 4, 4)),
        "t10k": rng.integers(256, size=(6, 4, 4)),
    }
    for split, ending in (("train", ""), ("t10k", ".gz")):
        pixels = images[split].astype(np.uint8)
        _idx(tmp_path / f"{split}-images-idx3-ubyte{ending}", pixels)
        _idx(tmp_path / f"{split}-labels-idx1-ubyte", np.arange(len(pixels), dtype=np.uint8))
    data = from_folder(batch=4, pool=2, folder=tmp_path)
    assert data.shape == (1, 2, 2)
    assert f"{tmp_path.name}: 12 images of 1x2x2 to train on and 6 held out" in data.about
    train, pooled = (
        torch.tensor(images[split]).float().view(-1, 2, 2, 2, 2).mean((2, 4)) for split in images
    )
    ((held_out, labels),) = data.validation()
    torch.testing.assert_close(held_out[:, 0], (pooled - train.mean()) / train.std())
    assert labels.tolist() == list(range(6))
    assert data.digest() == from_folder(batch=4, pool=2, folder=tmp_path).digest()
    assert data.digest() != from_folder(batch=4, pool=1, folder=tmp_path).digest()


def test_a_folder_of_cifar_10(tmp_path: Path) -> None:
    from benchmarks.accuracy.images import from_folder

    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        row = bytes([number]) * 1025 + bytes([9]) * 1024 + bytes([7]) * 1024
        (tmp_path / f"{name}.bin").write_bytes(row * 2)
    data = from_folder(batch=2, pool=2, folder=tmp_path)
    assert data.shape == (3, 16, 16)
    assert data.train[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.held_out[1].tolist() == [5, 5]
    red = data.train[0][:, 0].flatten(1)
    assert torch.equal(red.amax(1), red.amin(1))
    assert (red[::2].diff(dim=0) > 0).all()


def test_a_folder_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    from benchmarks.accuracy.images import from_folder

    def message(folder: Path) -> str:
        with pytest.raises(ValueError, match=str(folder)) as raised:
            from_folder(batch=2, pool=2, folder=folder)
        return str(raised.value)

    assert "give one with MNIST's or CIFAR-10's files, --data FOLDER" in message(tmp_path / "no")
    assert "has neither train-images-idx3-ubyte[.gz] nor test_batch.bin" in message(tmp_path)
    (tmp_path / "data_batch_1").touch()
    assert "of CIFAR-10 take the binary version" in message(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    two, floats = b"\0\0\x08\x01\0\0\0\x02", b"\0\0\x0d\x01\0\0\0\x01"
    for content in (b"", b"\0\0\x08", two + b"a", floats + b"a"):
        path.write_bytes(content)
        assert f"{path} is no whole IDX file of unsigned bytes" in message(tmp_path)
    packed = path.with_name(f"{path.name}.gz")
    path.rename(packed)
    assert f"{packed} cannot be read" in message(tmp_path)


@pytest.mark.parametrize("network", ["ResNet", "ResNet without norm", "ViT", "GPT"])
def test_initialise_is_in_place_and_reproducible(network: str) -> None:
    from benchmarks.accuracy import models

    name, *without = network.split(" without ")
    net = getattr(models, name)(**dict.fromkeys(without, False))
    assert any("Norm" in type(module).__name__ for module in net.modules()) is not bool(without)
    models.initialise(net, seed=1)
    places = [p.data_ptr() for p in net.parameters()]
    first = [t.clone() for t in net.state_dict().values()]
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    models.initialise(net, seed=1)
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(torch.equal(a, b) for a, b in zip(first, net.state_dict().values(), strict=True))


def test_patches_hold_neighbouring_pixels() -> None:
    from benchmarks.accuracy.models import ViT

    net, seen = ViT((3, 4, 6), (2, 3)), []
    torch.nn.init.zeros_(net.position)
    net.embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.arange(72.0).view(1, 3, 4, 6)
    net(image)
    (patches,) = seen
    assert patches.shape == (1, 4, 18)
    assert torch.equal(patches[0, 1], image[0, :, :2, 3:].flatten())
    assert torch.equal(patches[0, 2], image[0, :, 2:, :3].flatten())


def test_a_schedule_of_shares_and_budgets(tmp_path: Path) -> None:
    from benchmarks.accuracy.arms import ARMS

    arm = ARMS["tuned-75-then-dense"]
    assert arm.tuned
    assert arm.scheduled
    assert arm.schedule(100, lambda flops: tmp_path / f"{flops}.toml") == {
        0: str(tmp_path / "0.75.toml"),
        75: "dense",
    }
    assert len({pruning.digest() for pruning in ARMS.values()}) == len(ARMS)


def _pair(offset: float, spread: float) -> list[Any]:
    """Signals of a linear loss whose pruned gradient is off by ``offset`` and by noise."""
    from benchmarks.accuracy.gradients import signals

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (self.net[0].weight * x).sum()

    dense = Loss()

    def pruned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dense(x + offset + spread * torch.randn(3, 4), y)

    torch.manual_seed(1)
    batches = [(torch.ones(3, 4) + torch.randn(3, 4), torch.empty(0)) for _ in range(400)]
    state, weight = torch.get_rng_state(), dense.net[0].weight.detach().clone()
    found = signals(dense, pruned, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dense.net[0].weight, weight)
    assert [signal.layer for signal in found] == ["0", "all"]
    return found


def test_bias_and_noise_of_pruned_gradients_are_told_apart() -> None:
    (_, same), (biased, _), (noisy, _) = _pair(0.0, 0.0), _pair(0.5, 0.0), _pair(0.0, 0.7)
    assert (same.bias, same.noise) == (0, 0)
    assert same.cosine_batch == pytest.approx(1)
    assert biased.bias == pytest.approx(0.5, rel=0.1)  # of a mean gradient of ones
    assert biased.noise == pytest.approx(0, abs=1e-4)
    assert noisy.bias < 0.1
    assert noisy.noise == pytest.approx(0.49, rel=0.15)  # of a variance of one
    assert noisy.cosine_mean > 0.99 > noisy.cosine_batch


def _runs(arm: str, accuracies: list[float], network: str = "vit") -> list[Any]:
    from benchmarks.accuracy.gradients import Signal
    from benchmarks.accuracy.training import Point, Run, Validation

    signals = [Signal("all", 0.9, 0.9, 0.5, 0.1)] if "gradients" in arm else []
    return [
        Run(network, arm, seed, 9, 0.1, at, at, 1.0, 1.0, 0.5, 0.25, [Point(9, 0.1, at, signals)])
        for seed, a in enumerate(accuracies)
        for at in [Validation(0.2, a, 0.0)]
    ]


def test_one_image_is_no_finding() -> None:
    from benchmarks.accuracy.results import run_row
    from benchmarks.accuracy.studies import STUDIES
    from benchmarks.accuracy.summary import table

    study, image = STUDIES["digits"], 1 / 540
    dense = [0.97, 0.98, 0.96]
    runs = _runs("dense", dense)
    runs += _runs("activations", [a - image for a in dense])
    runs += _runs("full", [a - 0.05 + e for a, e in zip(dense, (0, image, -image), strict=True)])
    runs += _runs("weights", dense[:1])
    rows = [run_row(run, study.metric, {"data": "digits"}) for run in runs]
    cells = {row[0]: row for row in table(study, rows, "vit")}
    assert cells["dense"][4:6] == ["97.00 ± 1.00", ""]
    assert cells["activations"][5] == "-0.19 ± 0.00"
    assert cells["full"][5] == "-5.00 ± 0.19 *"
    assert cells["weights (1 of 3 seeds)"][5] == "+0.00"


class Study:
    """The command line, with training that is only pretended, and pages only if asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.trained: list[tuple[str, str, int]] = []
        self.output = ""

    def __call__(
        self, *words: str, study: str = "digits", end: int | None = None, draw: bool = False
    ) -> int:
        """The exit status of a command; with ``end``, Ctrl-C comes after so many runs."""
        from typer.testing import CliRunner

        from benchmarks.accuracy import __main__ as accuracy
        from benchmarks.accuracy import render, workers

        self.trained = []

        def train(jobs: list[Any], count: int, console: Any, keep: Any) -> Any:
            outcome = workers.Outcome()
            for job in jobs:
                for run in _runs(job.arm, [0.5] * 3, job.network):
                    if outcome.finished == end:
                        outcome.interrupted = True
                    elif run.seed in job.seeds:
                        keep(job, run)
                        outcome.finished += 1
                        self.trained.append((job.network, job.arm, run.seed))
            return outcome

        console = Console(file=io.StringIO(), width=400)
        self.monkeypatch.setattr(accuracy, "train", train)
        self.monkeypatch.setattr(accuracy, "render", render if draw else Mock())
        self.monkeypatch.setattr(accuracy, "console", console)
        command = [study, "--out", str(self.folder), *words]
        result = CliRunner().invoke(accuracy.app, command, env={"COLUMNS": "900"})
        self.output = " ".join((console.file.getvalue() + result.output).split())
        return result.exit_code

    def rows(self, ending: str = ".csv") -> list[dict[str, str]]:
        with (self.folder / f"accuracy_digits{ending}").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path, monkeypatch)


VIT = ("--networks", "vit", "--arms", "dense,gradients-1:2")


def test_an_interrupted_study_goes_on_where_it_was(study: Study) -> None:
    assert study(*VIT, end=4) == 130
    assert "interrupted; 4 of 6 runs are in" in study.output
    assert len(study.rows()) == 4
    assert {p.name for p in study.folder.iterdir()} == {
        f"accuracy_digits{ending}.csv" for ending in ("", "_curves", "_gradients")
    }
    assert study(*VIT) == 0
    assert study.trained == [("vit", "gradients-1:2", seed) for seed in (1, 2)]
    assert "has 4 of the 6 runs (commit" in study.output
    assert "2 are left" in study.output
    assert [(r["arm"], r["seed"]) for r in study.rows()] == [
        (arm, str(seed)) for arm in ("dense", "gradients-1:2") for seed in range(3)
    ]
    assert len(study.rows("_curves.csv")) == 6
    assert len(study.rows("_gradients.csv")) == 3
    assert study(*VIT, draw=True) == 0
    assert study.trained == []
    assert (study.folder / "accuracy_digits.md").exists()
    assert (study.folder / "accuracy_digits_gradients.png").exists()
    assert (study.folder / "accuracy_pareto.png").exists()
    claims = (study.folder / "accuracy_claims.md").read_text()
    assert "| vit (digits) | `gradients-1:2` | `dense` | accuracy (%) | 50.00 ± 0.00 |" in claims


def test_other_arms_and_seeds_join(study: Study) -> None:
    study(*VIT, "--seeds", "1")
    assert study("--networks", "vit", "--arms", "full", "--seeds", "2") == 0
    assert study.trained == [("vit", "full", 0), ("vit", "full", 1)]
    assert [row["arm"] for row in study.rows()] == ["dense", "gradients-1:2", "full", "full"]


def test_two_that_keep_runs_at_the_same_time(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks.accuracy.results import Store
    from benchmarks.accuracy.studies import STUDIES

    def keep(arm: str) -> None:
        for run in _runs(arm, [0.5] * 8):
            Store(tmp_path, STUDIES["digits"]).keep(run, {})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, ("dense", "full")))
    assert len(Store(tmp_path, STUDIES["digits"]).rows()) == 16


@pytest.mark.parametrize("column", ["setting", "policy", "network", "arm"])
def test_runs_of_other_settings_are_never_mixed_in(study: Study, column: str) -> None:
    from benchmarks import records

    study(*VIT)
    path, rows = study.folder / "accuracy_digits.csv", study.rows()
    rows[0][column] = "another"
    records.write(path, rows)
    before = path.read_bytes()
    assert study(*VIT) == 2
    assert "has 1 runs of other settings" in study.output
    assert "give another --out, or --replace to drop them" in study.output
    assert path.read_bytes() == before
    assert study(*VIT, "--replace") == 0
    assert "1 runs of other settings are dropped" in study.output
    assert study.trained == [("vit", "dense", 0)]


def test_comparing_gradients_is_no_other_setting() -> None:
    from dataclasses import replace

    from benchmarks.accuracy.studies import STUDIES

    setting = STUDIES["digits"].networks["vit"]
    digests = [
        replace(setting, **change).digest(9)
        for change in ({}, {"probes": 3}, {"rate": 0.1}, {"decay": 0.1}, {"clip": 0.1})
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_other_steps_are_another_setting(study: Study) -> None:
    study(*VIT)
    assert study(*VIT, "--steps", "5") == 2
    assert "(steps [9], now [5];" in study.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "fully"), "there is no arm 'fully': write some of dense, activations,"),
        (("--networks", "gpt"), "there is no network 'gpt': write some of resnet-no-norm,"),
    ],
)
def test_a_word_that_is_unknown(study: Study, words: tuple[str, str], message: str) -> None:
    assert study(*words) == 2
    assert message in study.output


def test_data_that_are_not_there(study: Study) -> None:
    assert study("--data", "/nowhere", study="fashion") == 2
    assert "there is no folder /nowhere: give one with MNIST's" in study.output


def test_the_published_pages_are_made_of_the_published_rows() -> None:
    from benchmarks.accuracy import claims
    from benchmarks.accuracy.results import Store
    from benchmarks.accuracy.studies import STUDIES
    from benchmarks.accuracy.summary import markdown
    from benchmarks.records import RESULTS

    stores = [Store(RESULTS, study) for study in STUDIES.values()]
    found = [(store.study, store.rows()) for store in stores if store.rows()]
    for study, rows in found:
        assert (RESULTS / f"accuracy_{study.name}.md").read_text() == markdown(study, rows)
    assert (RESULTS / "accuracy_claims.md").read_text() == claims.markdown(found)


def works(channel: Any) -> None:
    """Finishes each job at once, but dies of those of the arm ``full`` and fails at ``weights``."""
    while True:
        channel.send(("free", None))
        if (job := channel.recv()) is None:
            return
        channel.send(("start", None))
        if job.arm == "weights":
            channel.send(("failed", "Traceback: so it is"))
            continue
        for run in _runs(job.arm, [0.5] * len(job.seeds)):
            if job.arm == "full":
                os.kill(os.getpid(), signal.SIGSEGV)
            channel.send(("step", (1, run.seed, 0.5)))
            channel.send(("run", run))
        channel.send(("ended", "done"))


def _trained(arms: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any], str]:
    """The outcome of a job for each arm in two workers, the runs, and what was printed."""
    from benchmarks.accuracy import jobs, workers

    monkeypatch.setattr(workers, "WORKER", works)
    todo = [
        jobs.Job("digits", "vit", arm, (0, number), 1, None, Path(), "", "", "")
        for number, arm in enumerate(arms.split(), 1)
    ]
    console = Console(file=io.StringIO(), width=120)
    kept: list[Any] = []
    outcome = workers.train(todo, 2, console, lambda job, run: kept.append((job.arm, run)))
    return outcome, kept, console.file.getvalue()


def test_workers_share_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = "dense gradients-1:2 gradients-2:4 activations mse-gradients"
    outcome, kept, printed = _trained(arms, monkeypatch)
    assert (outcome.finished, outcome.failed, outcome.interrupted) == (10, [], False)
    assert sorted(arm for arm, _ in kept) == sorted(arms.split() * 2)
    assert all(arm == run.arm for arm, run in kept)
    assert all(f"vit {arm} ended: done" in printed for arm in arms.split())


def test_a_job_that_dies_or_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, kept, _ = _trained("full weights dense full activations", monkeypatch)
    assert sorted(outcome.failed) == [
        "vit full failed: its process ended with exit code -11",
        "vit full failed: its process ended with exit code -11",
        "vit weights failed: Traceback: so it is",
    ]
    assert {arm for arm, _ in kept} == {"dense", "activations"}
    assert outcome.finished == 4


def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trained("", monkeypatch)[0].finished == 0


def test_ctrl_c_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.accuracy import workers

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_follow", interrupt)
    outcome, kept, _ = _trained("dense", monkeypatch)
    assert (kept, outcome.interrupted) == ([], True)


@pytest.mark.slow
def test_digits_study(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "digits", "--out", str(tmp_path)]
    command += ["--networks", "vit", "--arms", "dense,full,tuned-75-then-dense"]
    command += ["--seeds", "1", "--steps", "48"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        *(f"accuracy_digits{end}" for end in (".csv", "_curves.csv", ".md", ".png")),
        *("accuracy_digits_vit_tuned-75.toml", "accuracy_claims.md", "accuracy_pareto.png"),
    }

    with (tmp_path / "accuracy_digits.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"dense", "full", "tuned-75-then-dense"}
    assert rows["dense"].keys() >= {
        *("network", "seed", "steps", "train_loss", "validation_loss", "validation_accuracy"),
        *("seconds", "setting", "policy", "data", "machine", "torch", "nmcompile", "commit"),
    }
    assert float(rows["dense"]["pruned_flops_share"]) == 0
    assert float(rows["full"]["pruned_flops_share"]) == 1
    tuned = rows["tuned-75-then-dense"]
    assert 0.75 * 0.75 <= float(tuned["pruned_flops_share"]) < 0.75 * 0.9
    # It ends dense, and so is validated without masks; ``full`` is not.
    same = [
        row["validation_accuracy"] == row["dense_forward_validation_accuracy"]
        for row in (rows["full"], tuned)
    ]
    assert same == [False, True]

    with (tmp_path / "accuracy_digits_curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    for arm in rows:
        losses = [float(row["train_loss"]) for row in curves if row["arm"] == arm]
        assert losses[-1] < 0.7 * losses[0]
        assert any(row["validation_accuracy"] for row in curves if row["arm"] == arm)
    assert "| full | 100.0% |" in (tmp_path / "accuracy_digits.md").read_text()
    assert (tmp_path / "accuracy_digits_vit_tuned-75.toml").read_text().startswith("# Setting ")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 are left" in again.stdout


@pytest.mark.slow
def test_gradients_are_compared_on_the_way() -> None:
    from dataclasses import replace

    from benchmarks.accuracy.arms import ARMS
    from benchmarks.accuracy.studies import STUDIES
    from benchmarks.accuracy.training import Arm

    setting = replace(STUDIES["digits"].networks["resnet-no-norm"], probes=4)
    found = {}
    for name in ("gradients-1:2", "mse-gradients-1:2"):
        arm = Arm(setting, "resnet-no-norm", name, ARMS[name].schedule(24, lambda _: Path()), 24)
        (found[name],) = [
            signal
            for point in arm.run(0, lambda step, loss: None).curve
            for signal in point.signals
            if (point.step, signal.layer) == (24, "all")
        ]
    assert found["gradients-1:2"].bias < 0.2 < found["mse-gradients-1:2"].bias
    assert found["gradients-1:2"].noise > found["mse-gradients-1:2"].noise

"""``benchmarks.gpu_check`` rehearsed on the CPU: every section, its files, limits and failures.

What a GPU alone can show (events, graphs, the sparse library) is out of reach here.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("typer")
sys.path.insert(0, str(ROOT))

from typer.testing import CliRunner  # noqa: E402

from benchmarks.gpu_check import __main__ as entry  # noqa: E402
from benchmarks.gpu_check import cases, events, supervise  # noqa: E402
from benchmarks.gpu_check.cases import inputs, probe, products, training, variants  # noqa: E402
from benchmarks.gpu_check.cli import BUDGETS, app, choose  # noqa: E402
from benchmarks.gpu_check.device import Device, Rehearsal, poisoned  # noqa: E402
from benchmarks.gpu_check.events import RESULTS, Case, Results, Session  # noqa: E402
from benchmarks.gpu_check.targets import TARGETS, verdict  # noqa: E402
from benchmarks.gpu_check.worker import run_cases  # noqa: E402
from benchmarks.table import Row  # noqa: E402


def rehearse(out: Path, *arguments: str, code: int = 0) -> dict:
    """Run the command; the JSON that it wrote."""
    given = ["--rehearse", "--minutes", "9", "--out", str(out), *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, result.output
    return json.loads((out / "gpu_check_rehearsal.json").read_text())


def statuses(data: dict) -> dict[str, str]:
    return {
        f"{section}/{name}": case["status"]
        for section, record in data["sections"].items()
        for name, case in record["cases"].items()
    }


# -- every section -------------------------------------------------------------------------------


def test_probe(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "probe")
    assert set(statuses(data).values()) == {"ok"}
    checks = data["sections"]["probe"]["cases"]["bfloat16"]["checks"]
    assert len(checks) == len(probe.UNITS) + 1


@pytest.mark.parametrize("only", ["compress bfloat16 mvue 2:4*", "compress c*", "mean*", "mm*"])
def test_kernels(tmp_path, only):
    data = rehearse(tmp_path, "--inline", "--only", f"kernels/{only}")
    assert set(statuses(data).values()) == {"ok"}


@pytest.mark.slow
def test_compiled_kernels(tmp_path):
    data = rehearse(tmp_path, "--inline", "--only", "kernels/compiled [bw]*")
    assert set(statuses(data).values()) == {"ok"}


def test_products(tmp_path):
    data = rehearse(tmp_path, "--inline", "--section", "products")
    assert set(statuses(data).values()) == {"ok"}
    assert_targets_are_measured(tmp_path, "products")


class Perceptron(torch.nn.Module):
    """Compiles in a few seconds; the networks of the section take half a minute each."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x, labels):
        y = self.down(torch.nn.functional.gelu(self.up(x)))
        return torch.nn.functional.cross_entropy(y.float(), labels)


def perceptron(device):
    torch.manual_seed(0)
    x = torch.randn(64, 32).bfloat16()
    return Perceptron().bfloat16(), (x, torch.randint(32, (64,)))


@pytest.mark.slow
def test_training(tmp_path, monkeypatch):
    plans = [
        training.Plan("llama", "default", (variants.DENSE, "full"), 1),
        training.Plan("llama", "reduce-overhead", (variants.DENSE, "gradients"), 1),
    ]
    monkeypatch.setattr(training, "PLAN", plans)
    monkeypatch.setitem(training.NETWORKS, "llama", (perceptron, perceptron))
    data = rehearse(tmp_path, "--inline", "--section", "training")
    case = data["sections"]["training"]["cases"]["llama/default"]
    assert case["status"] == "ok", case["error"]
    assert case["notes"]["full: sites"] == {"fprop sparse": 2, "dgrad sparse": 1, "wgrad sparse": 2}
    assert_targets_are_measured(tmp_path, "training")
    case = data["sections"]["training"]["cases"]["llama/reduce-overhead"]
    assert case["status"] == "ok", case["error"]
    assert case["notes"]["gradients: sites"]["fprop dense"] == 2


def compare(providers: tuple[str, ...], facts: dict) -> list[dict]:
    """The events of ``training.compare`` in a session that knows ``facts``."""
    seen: list[dict] = []
    case, until = Case("training", "x", lambda session: None), time.monotonic() + 60
    session = Session(Rehearsal(), seen.append, {}, facts, case, until)
    training.compare(session, "llama", "default", providers)
    return seen


def test_recipes_are_left_out_where_full_runs_nothing_sparse(monkeypatch):
    monkeypatch.setattr(training, "variant", lambda *_: pytest.fail("nothing to compare"))
    facts = {("sparse sites", "llama", "default"): 0}
    seen = compare((variants.DENSE, "gradients"), facts)
    assert [event["name"] for event in seen] == ["left out"]


def test_a_variant_that_fails_does_not_end_the_others(monkeypatch):
    def fail(provider, *_):
        raise ZeroDivisionError(provider)

    monkeypatch.setattr(training, "variant", fail)
    checks = compare((variants.DENSE, "full"), {"inductor": True})
    assert [check["name"] for check in checks] == ["inductor: runs", "full: runs"]
    assert all("ZeroDivisionError: " in check["detail"] for check in checks)


@pytest.mark.parametrize("network", training.NETWORKS)
def test_rehearsed_networks_train(network):
    model, batch = training.NETWORKS[network][True]("cpu")
    model(*batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    again, _ = training.NETWORKS[network][True]("cpu")
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def assert_targets_are_measured(folder: Path, mode: str) -> None:
    """Each target names a provider, metric and configuration that the rehearsal wrote."""
    with (folder / "gpu_check_rehearsal.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["p20"]) <= float(row["p50"]) <= float(row["p80"]) for row in rows)
    assert all("rehearsal" in row["machine"] and not row["target"] for row in rows)
    written = {(row["provider"], row["metric"], row["config"]) for row in rows}
    wanted = {
        (t.provider, t.metric, t.config) for t in TARGETS if (t.mode, t.optional) == (mode, False)
    }
    assert wanted <= written


def test_targets_name_what_is_measured_on_a_gpu():
    names = {case.name for case in cases.all_cases(rehearse=False)}
    shapes = {str(shape) for shape in products.CUBES if str(shape) in names}
    for target in TARGETS:
        if target.mode == "training":
            assert f"{target.x}/{target.config}" in names
            assert target.provider in variants.RECIPES
            assert target.x in training.NETWORKS
        else:
            assert any(shape.startswith(target.x) for shape in shapes)


def test_names_are_unique_and_budgets_cover_all_sections():
    for rehearsed in (False, True):
        keys = [case.key for case in cases.all_cases(rehearsed)]
        assert len(keys) == len(set(keys))
        assert list(dict.fromkeys(k.split("/")[0] for k in keys)) == list(BUDGETS)
    assert sum(BUDGETS.values()) < 9 * 60


def test_networks_have_their_known_sizes():
    with torch.device("meta"):
        counts = {
            "llama": training.networks.LlamaBlock(training.networks.LlamaShape()),
            "gpt2": training.networks.GPT2(training.networks.GPT2Shape()),
            "resnet": training.networks.ResNet(training.networks.ResNetShape()),
        }
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in counts.items()}
    assert sizes["llama"] == 218_112_000  # a layer of Llama 3 8B
    assert sizes["resnet"] == 25_557_032  # torchvision's resnet50
    # GPT-2 medium has 354,823,168; the head is not tied here and the vocabulary is padded.
    assert sizes["gpt2"] == 354_823_168 + (50304 - 50257) * 1024 + 50304 * 1024


# -- files ---------------------------------------------------------------------------------------


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


# -- failures and time ---------------------------------------------------------------------------


def make(name: str, run=lambda session: None, **rest: object) -> Case:
    return Case("probe", name, run, **rest)


def results_of(chosen: list[Case], left: float = 60) -> Results:
    results = Results(True, {"probe": 10})
    deadlines = {"probe": time.monotonic() + left}
    run_cases(chosen, Rehearsal(), deadlines, results.receive, "")
    return results


def found(results: Results) -> dict[str, str]:
    return {name: case["status"] for _, name, case in results.cases()}


def test_a_failing_case_is_recorded_and_the_others_run():
    def fail(session):
        raise ZeroDivisionError("in the case")

    results = results_of([make("bad", fail), make("good")])
    assert found(results) == {"bad": "error", "good": "ok"}
    error = results.sections["probe"]["cases"]["bad"]["error"]
    assert "Traceback" in error
    assert "ZeroDivisionError: in the case" in error
    assert not results.sound


def test_a_failing_check_makes_the_run_unsound():
    def check(session):
        session.check("right", True)
        session.check("wrong", False, "why")

    results = results_of([make("checks", check), make("good")])
    assert found(results) == {"checks": "failed", "good": "ok"}
    assert not results.sound
    assert results_of([make("good")]).sound


def test_a_lost_device_ends_the_worker(monkeypatch):
    def fail(session):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(Rehearsal, "lost", lambda self: True)
    assert found(results_of([make("bad", fail), make("later")])) == {"bad": "error"}


def test_cases_without_time_are_skipped():
    results = results_of([make("long", seconds=90), make("short", seconds=1)])
    assert found(results) == {"long": "skipped", "short": "ok"}
    assert "needs 90 s" in results.sections["probe"]["cases"]["long"]["error"]
    assert results.sound


def test_unused_time_goes_to_later_sections():
    ends = supervise.deadlines(100.0, 60.0, {"a": 10, "b": 20})
    assert ends == {"a": 120.0, "b": 160.0}


FAKE_WORKER = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
file = open(job["events"], "a")
def send(kind, **event):
    print(json.dumps({"kind": kind, **event}), file=file, flush=True)
send("environment", data={"gpu": "none"})
for key in job["keys"]:
    section, case = key.split("/")
    send("start", section=section, case=case, limit=1)
    if case == "crashes":
        print("about to crash", file=sys.stderr, flush=True)
        os.abort()
    if case == "hangs":
        time.sleep(60)
    if case == "loses":
        send("end", section=section, case=case, status="error", seconds=0, error="lost")
        sys.exit(3)
    send("end", section=section, case=case, status="ok", seconds=0, error="")
"""


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(FAKE_WORKER)
    monkeypatch.setattr(supervise, "WORKER", (sys.executable, str(script)))
    return tmp_path


def supervised(folder: Path, names: str, end: float = 60, **rest: object) -> Results:
    results = Results(True, {"probe": 10})
    chosen = [make(name, limit=1.0, **rest) for name in names.split()]
    job = {"end": time.monotonic() + end}
    supervise.supervise(chosen, job, folder, results.receive, lanes=2)
    return results


@pytest.mark.parametrize("parallel", [False, True])
def test_crashes_and_hangs_cost_one_case(fake_worker, parallel):
    results = supervised(fake_worker, "a crashes b loses c hangs d e", parallel=parallel)
    ok = dict.fromkeys("abcde", "ok")
    assert found(results) == {**ok, "crashes": "crashed", "loses": "error", "hangs": "crashed"}
    errors = {name: case["error"] for _, name, case in results.cases()}
    assert "about to crash" in errors["crashes"]
    assert "status -6" in errors["crashes"]
    assert "killed after 1 s" in errors["hangs"]
    assert not results.sound


def test_the_end_of_all_time_is_no_crash(fake_worker):
    results = supervised(fake_worker, "a hangs b", end=0.5)
    assert found(results) == {"a": "ok", "hangs": "cut off", "b": "skipped"}
    assert results.sound


def test_a_worker_that_never_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "WORKER", (sys.executable, "-c", "raise SystemExit('no GPU')"))
    results = supervised(tmp_path, "a b")
    assert found(results) == {"a": "crashed", "b": "crashed"}
    assert "no GPU" in results.sections["probe"]["cases"]["a"]["error"]


# -- parts ---------------------------------------------------------------------------------------


def test_the_verdict_is_of_measured_rows():
    fast, slow, *_ = TARGETS
    rows = [
        Row(
            kernel="gpu_check",
            **{f.name: getattr(t, f.name) for f in dataclasses.fields(t) if f.name in shared},
            **dict.fromkeys(("p20", "p50", "p80"), value),
            target=t.bound,
        )
        for t, value in ((fast, 1.1), (slow, 9.0))
        for shared in [("mode", "provider", "metric", "x", "config")]
    ]
    lines = {line["target"]: line["result"] for line in verdict(rows)}
    assert lines.pop(fast.title) == "PASS"
    assert lines.pop(slow.title) == "FAIL"
    assert set(lines.values()) == {"not measured"}
    assert len(lines) == sum(not t.optional for t in TARGETS) - 2


def test_sections_are_chosen_in_their_order():
    names = [case.section for case in choose("training,probe", "", True)]
    assert list(dict.fromkeys(names)) == ["probe", "training"]
    assert choose("verdict", "", True) == []


def test_operands_keep_their_place_in_memory():
    strides = {"transposed": (1, 6), "sliced": (13, 1), "shifted": (5, 1), "normal": (5, 1)}
    for kind, stride in strides.items():
        x = inputs.operand(kind, 6, 5, torch.bfloat16)
        assert x.shape == (6, 5)
        assert x.stride() == stride
    assert inputs.operand("shifted", 6, 5, torch.bfloat16).data_ptr() % 16
    special = inputs.operand("special", 64, 64, torch.float16)
    assert special.isnan().any()
    assert special.isinf().any()


def test_differences_are_found():
    x = torch.tensor([1.0, torch.nan, -0.0], dtype=torch.float16)
    assert inputs.difference(x, x.clone()) == ""
    y = torch.tensor([1.0, torch.nan, 0.0], dtype=torch.float16)
    assert inputs.difference(x, y) == "1 of 3 differ, first at 2: 8000, not 0000"
    assert "first at 5: 128, not 0" in inputs.byte_difference(x, y)
    assert inputs.relative_error(x, x) != 0  # NaN


def test_unwritten_outputs_are_poisoned():
    with poisoned():
        assert torch.empty(8, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_clock_of_a_gpu_takes_turns(monkeypatch):
    """The CUDA calls are imitated: an event reads a clock that each call moves on."""
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, end):
            return end.at - self.at

    def wait(cycles):
        clock[0] += 4.0

    for name, fake in {"Event": Event, "_sleep": wait, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    order = []

    def call(name, milliseconds):
        def run(i):
            order.append((name, i))
            clock[0] += milliseconds

        return run

    device = object.__new__(Device)
    samples = device.time({"a": call("a", 1.0), "b": call("b", 2.0)}, rounds=2)
    assert samples == {"a": [1e-3] * 10, "b": [2e-3] * 10}
    assert [name for name, _ in order[6::5]] == ["a", "b", "b", "a"]
    assert [i for name, i in order[6:] if name == "a"] == list(range(10))
    assert len(device.host_time(call("c", 1.0), 60)) == 60
    assert device.input_sets(2**40) == 2
    assert device.input_sets(2**20) == 8


def test_results_hold_plain_json(tmp_path):
    results = results_of([make("notes", lambda session: session.note("x", float("nan")))])
    (path,) = results.save([tmp_path])
    assert json.loads(path.read_text())["sections"]["probe"]["cases"]["notes"]["notes"] == {
        "x": "nan"
    }
    assert events.commit() is not None

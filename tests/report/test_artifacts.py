"""What tlparse and TORCH_COMPILE_DEBUG=1 show: plan, policy, graphs and kernels of each graph."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nmcompile import Policy, _torch
from nmcompile.report import artifacts
from nmcompile.report.artifacts import show_kernels, show_plan
from tests.report.samples import graph, site

FULL = Policy.recipe("full")
REPORT = graph(site("layers.0.fc"), training=True)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Somebody listens to the trace; (name, content) of each artifact."""
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(_torch, "is_traced", lambda: True)
    monkeypatch.setattr(_torch, "trace_artifact", lambda *entry: found.append(entry))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where Inductor writes what is for debugging."""
    with torch._inductor.config.patch({"trace.enabled": True, "trace.debug_dir": str(tmp_path)}):
        yield tmp_path / "torchinductor"


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def test_where_nobody_listens_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> dict[str, str]:
        raise AssertionError("made")

    monkeypatch.setattr(_torch, "is_traced", lambda: False)
    monkeypatch.setattr(artifacts.text, "plain", forbidden)
    show_plan(REPORT, FULL)
    show_kernels(forbidden)


def test_a_trace_has_four_artifacts_of_a_plan(traced: list[tuple[str, str]]) -> None:
    show_plan(REPORT, FULL)
    (_, plan), (_, policy), (_, before), (_, after) = traced
    assert [name for name, _ in traced] == [
        "nmcompile_plan",
        "nmcompile_policy",
        "nmcompile_joint_graph_before",
        "nmcompile_joint_graph_after",
    ]
    assert plan.split("\n")[0].rstrip() == "graph (training)"  # tlparse says which
    assert "layers.0.fc" in plan
    assert Policy.loads(policy) == FULL
    assert (before, after) == ("a", "b")


def test_a_graph_of_inference_is_not_called_a_joint_one(traced: list[tuple[str, str]]) -> None:
    show_plan(graph(site()), FULL)
    assert [n for n, _ in traced if "graph" in n] == [
        "nmcompile_inference_graph_before",
        "nmcompile_inference_graph_after",
    ]


def test_a_stored_plan_says_so(traced: list[tuple[str, str]]) -> None:
    show_plan(REPORT, FULL, stored=True)
    assert traced[0][1].startswith("This graph came from the cache and no pass ran: the plan is")


def test_kernels_are_one_artifact_and_none_is_none(traced: list[tuple[str, str]]) -> None:
    show_kernels(dict)
    assert traced == []
    show_kernels(lambda: {"a_1.py": "first\n", "b_2.py": "second\n"})
    assert traced == [
        ("nmcompile_kernels", "# ---- a_1.py\n\nfirst\n\n\n# ---- b_2.py\n\nsecond\n")
    ]


def test_files_for_debugging_lie_beside_those_of_inductor(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    show_plan(REPORT, FULL)
    show_kernels(lambda: {"a_1.py": "first\n"})
    own = f"{_torch.graph_name()}.nmcompile"
    found = contents(folder)
    assert list(found) == [
        f"{own}/{name}"
        for name in (
            *("joint_graph_after.py", "joint_graph_before.py", "kernels.py", "plan.txt"),
            "policy.toml",
        )
    ]
    assert found[f"{own}/joint_graph_before.py"] == "a"
    assert f"debug trace: {folder / own}" in caplog.messages
    show_plan(graph(site("other"), training=True), FULL)  # a graph that it calls
    assert "other" in contents(folder)[f"{own}.1/plan.txt"]
    assert contents(folder)[f"{own}/plan.txt"] == found[f"{own}/plan.txt"]


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    place = {"trace.enabled": True, "trace.debug_dir": str(tmp_path / "file")}
    with torch._inductor.config.patch(place):
        show_plan(REPORT, FULL)
    (message,) = filter(None, caplog.messages)  # of the trace: empty ones
    assert message.startswith(f"no files for debugging in {tmp_path}/file/torchinductor: ")


# -- with the tools themselves ---------------------------------------------------------------------

SCRIPT = """
    import torch
    import nmcompile

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (torch.nn.Linear(64, 64, dtype=torch.bfloat16) for _ in "ab")

        def forward(self, x):
            y = torch.nn.functional.silu(self.first(x))
            torch._dynamo.graph_break()
            return self.second(y)

    policy = nmcompile.Policy(extends="full", execution="sparse")
    options = {"policy": policy, "nm.kernels": "generate"}
    step = torch.compile(Net(), backend="nm_sparse", options=options)
    step(torch.randn(64, 64).bfloat16()).sum().backward()
"""
TLPARSE = Path(sys.executable).with_name("tlparse")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two processes with one cache, which trace and debug; the second finds all."""
    pytest.importorskip("triton")
    base = tmp_path_factory.mktemp("tools")
    found = []
    for name in ("cold", "warm"):
        folder = base / name
        folder.mkdir()
        environment = {
            **{k: v for k, v in os.environ.items() if k != "TORCH_LOGS"},
            "TORCH_TRACE": str(folder / "trace"),
            "TORCH_COMPILE_DEBUG": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(base / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(folder)
    return found


def listed(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By compile id what tlparse lists of ours, in order: (name without its number, content)."""
    if not TLPARSE.exists():
        pytest.skip("tlparse is not installed")
    (trace,) = (folder / "trace").iterdir()
    out = folder / "parsed"
    command = [TLPARSE, trace, "-o", out, "--no-browser", "--strict", "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)
    entries = json.loads((out / "compile_directory.json").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    for compile_id, entry in entries.items():
        for artifact in entry["artifacts"]:
            name = re.fullmatch(r".*/nmcompile_(\w+)_\d+\.txt", artifact["url"])
            if name is not None:
                text = (out / artifact["url"]).read_text()
                found.setdefault(compile_id, []).append((name[1], text))
    return found


GRAPHS = ["joint_graph_before", "joint_graph_after"]


@pytest.mark.slow
def test_tlparse_lists_plan_graphs_and_kernels_under_each_compile_id(runs: list[Path]) -> None:
    found = listed(runs[0])
    assert len(found) == 2
    for layer, entries in zip(("first", "second"), found.values(), strict=True):
        names = [name for name, _ in entries]
        assert names == ["plan", "policy", *GRAPHS, "kernels", "kernels"]  # forward, backward
        plan, _, before, after, *kernels = (content for _, content in entries)
        assert layer in plan
        assert "no pass ran" not in plan
        assert "nm.compress" in after
        assert "nm.compress" not in before
        assert "mse" in kernels[0]
        assert "mvue" in kernels[1]
        assert all("@triton.jit" in source for source in kernels)


@pytest.mark.slow
def test_on_a_warm_cache_tlparse_lists_the_same(runs: list[Path]) -> None:
    cold, warm = map(listed, runs)
    assert len(warm) == 2
    for before, after in zip(cold.values(), warm.values(), strict=True):
        assert [name for name, _ in after] == ["plan", "policy", *GRAPHS, "kernels"]
        assert after[0][1].startswith("This graph came from the cache and no pass ran: ")
        assert after[1:4] == before[1:4]
        files = {line for _, text in before[4:] for line in re.findall(r"^# ---- .*", text, re.M)}
        assert set(re.findall(r"^# ---- .*", after[4][1], re.M)) == files


@pytest.mark.slow
def test_torch_compile_debug_writes_them_beside_the_folders_of_inductor(runs: list[Path]) -> None:
    (folder,) = (runs[0] / "torch_compile_debug").glob("run_*/torchinductor")
    ours = {p.name: sorted(f.name for f in p.iterdir()) for p in folder.glob("*.nmcompile*")}
    plans = ["joint_graph_after.py", "joint_graph_before.py", "plan.txt", "policy.toml"]
    kinds = [re.sub(r"\d+", "N", name) for name in sorted(ours)]
    assert kinds == [
        f"model__N_{kind}_N.nmcompile" for kind in ("backward", "forward", "joint") * 2
    ]
    for name, files in ours.items():
        assert files == (plans if "joint" in name else ["kernels.py"])
    codes = {p.parent.name.rpartition(".")[0] for p in folder.glob("*/output_code.py")}
    assert {name.removesuffix(".nmcompile") for name in ours if "joint" not in name} == codes


@pytest.mark.slow
def test_on_a_warm_cache_the_files_are_there_too(runs: list[Path]) -> None:
    (folder,) = (runs[1] / "torch_compile_debug").glob("run_*/torchinductor")
    ours = sorted(p for p in folder.glob("*.nmcompile*"))
    assert [re.sub(r"\d+", "N", p.name) for p in ours] == ["cached_N_N.nmcompile"] * 2
    for place in ours:
        assert len(list(place.iterdir())) == 5
        assert "no pass ran" in (place / "plan.txt").read_text()


def test_a_policy_with_a_strange_name_is_text(traced: list[tuple[str, str]]) -> None:
    show_plan(graph(site("a\x1b[31m</pre>")), FULL)
    assert "\x1b" not in traced[0][1]


def test_torch_says_where_to_write_and_what_the_graph_is_called(folder: Path) -> None:
    assert _torch.debug_folder() == folder
    assert _torch.graph_name().startswith("cached_")  # outside of AOTAutograd
    with torch._inductor.config.patch({"trace.enabled": False}):
        assert _torch.debug_folder() is None

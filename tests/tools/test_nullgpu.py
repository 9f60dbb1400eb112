"""What is asked of the null GPU's log: each expectation can fail.

The device itself needs the CUDA build of torch (``make rehearse``): its log is written by hand.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

from rich.console import Console

from tools.nullgpu import __main__ as rehearse
from tools.nullgpu import log as logs
from tools.nullgpu.expectations import LIMITS, Measured, count, show
from tools.nullgpu.steps import wide_inputs

FOLDER = Path(rehearse.__file__).parent
LINES = """\
LOAD 64 0 compress_rows_mse_2_4_copy
LOAD 255 88 compress_both_mvue_2_4_mul
LOAD 255 400 triton_red_fused_0
LOAD 255 16 compress_both_mvue_2_4_mul
TRITON 1,1,1 compress_rows_mse_2_4_copy
KERNEL 8,1,1 embedding
GEMM cublasLtMatmul
CSLT plan
CSLT matmul
CONV
MEMCPY HtoD 8
MEMCPY DtoH 4
SYNC stream
BAD-GRID 0 1 1
ILLEGAL-IN-CAPTURE stream
OOM 1024
""".splitlines()


def test_the_log_is_asked() -> None:
    log = logs.Log(LINES)
    assert len(log.launches) == 5
    assert log.waits == ["MEMCPY DtoH 4", "SYNC stream"]
    assert [line.split()[0] for line in log.faults] == ["BAD-GRID", "ILLEGAL-IN-CAPTURE", "OOM"]
    # Inductor's own kernels may spill; a kernel counts by its worst variant.
    assert log.spills == {"compress_rows_mse_2_4_copy": 0, "compress_both_mvue_2_4_mul": 88}
    assert rehearse._spills("x", log.spills).value == 1


def test_a_launch_is_on_the_device_that_is_current() -> None:
    log = logs.Log(["TRITON 1,1,1 a", "TRITON 2,1,1 b @1", "KERNEL 1,1,1 c"])
    assert log.elsewhere(0) == ["TRITON 2,1,1 b @1"]
    assert log.elsewhere(1) == ["TRITON 1,1,1 a"]


def test_only_what_is_logged_within_counts(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("NULL_LOG", str(tmp_path / "log"))
    with pytest.raises(RuntimeError, match="no log"), logs.recorded():
        pass
    file = tmp_path / f"log.{os.getpid()}"
    file.write_text("SYNC stream\n")
    with logs.recorded() as log, file.open("a") as out:
        out.write("TRITON 1,1,1 a\n")
    assert log.lines == ["TRITON 1,1,1 a"]
    (tmp_path / "log.1").write_text("GEMM a\n")
    assert set(logs.read(tmp_path / "log").lines) == {"SYNC stream", "TRITON 1,1,1 a", "GEMM a"}


def test_an_input_is_wide_where_it_is_larger_than_the_operand() -> None:
    half, single = torch.bfloat16, torch.float32
    tensors = {
        "x": torch.empty(64, 128, dtype=half),
        "rstd": torch.empty(64, 1, dtype=single),
        "packed0": torch.empty(64 * 128 * 9 // 16, dtype=half),
    }
    assert wide_inputs(tensors) == []
    wide = {**tensors, "sigmoid": torch.empty(64, 128, dtype=single)}
    assert wide_inputs(wide) == ["sigmoid float32 [64, 128]"]
    del wide["packed0"]  # another kernel
    assert wide_inputs(wide) == []


@pytest.mark.parametrize("name", LIMITS)
def test_every_expectation_fails_above_its_limit(name) -> None:
    console = Console(width=120, record=True)
    assert show([Measured(name, "here", LIMITS[name])], console)
    assert not show([Measured(name, "here", LIMITS[name] + 0.01, "why it is so")], console)
    assert not Measured(name, "here", float("nan")).holds
    text = console.export_text()
    assert "FAILS" in text
    assert "why it is so" in text


def test_a_count_names_the_first_of_what_it_found() -> None:
    found = count("host waits in a step", "layer", ["SYNC stream", "SYNC device"])
    assert (found.value, found.detail) == (2, "SYNC stream; SYNC device")


def test_a_case_that_fails_its_checks_alone_came_to_its_end(tmp_path) -> None:
    def case(status: str, *checks: tuple[str, bool]) -> dict[str, object]:
        listed = [{"name": n, "passed": p, "detail": "Traceback\nKeyError: 1"} for n, p in checks]
        return {"status": status, "error": "why", "checks": listed}

    cases = {
        "a": case("ok", ("full: runs", True)),
        "b": case("failed", ("output", False)),
        "c": case("failed", ("full: runs", False)),
        "d": case("crashed"),
        "e": case("skipped"),
    }
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"sections": {"llama": {"cases": cases}}}))
    broken = list(rehearse._broken(file))
    assert [line.partition(":")[0] for line in broken] == ["llama/c", "llama/d", "llama/e"]
    assert "KeyError: 1" in broken[0]


def test_a_stub_stands_for_what_is_not_written_out() -> None:
    """A name that is both would not link; one that is twice would not compile."""
    stubs = (FOLDER / "stubs.txt").read_text().split()
    assert len(stubs) == len(set(stubs))
    written = {
        name
        for file in FOLDER.glob("*.cpp")
        for name in re.findall(r"^EXPORT [\w ]*?[ *](\w+)\(", file.read_text(), re.M)
    }
    assert len(written) > 120
    assert not written & set(stubs)


def test_the_device_cannot_hide_what_it_is() -> None:
    from benchmarks.gpu_check.events import NULL_GPU

    assert f'name += " {NULL_GPU}"' in (FOLDER / "log.h").read_text()

"""The clock of a GPU, imitated, and outputs filled with NaN."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("typer")

from benchmarks.gpu_check.device import Device, guarded, poisoned


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


def test_a_field_that_cannot_be_read_costs_no_other():
    def fail():
        raise RuntimeError("no such library")

    found = guarded({"a": lambda: 1, "b": fail, "c": lambda: 3})
    assert (found["a"], found["c"]) == (1, 3)
    assert found["b"].startswith("unknown: RuntimeError('no such library')")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_is_described_though_nothing_answers():
    found = object.__new__(Device).describe()
    assert found["gpu"].startswith("unknown: ")
    assert found["nvidia-smi"].startswith("unknown: ")
    assert found["cuda"] == torch.version.cuda


def test_a_profile_is_of_the_device_alone(monkeypatch):
    """What the profiler writes is imitated: a kernel twice, a range over both, the host's own."""

    def event(cat, name, ts, dur, **args):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}

    events = [
        event("kernel", "gemm", 20.0, 3.0, grid=[4, 2, 1]),
        event("kernel", "gemm", 10.0, 2.0, grid=[8, 1, 1]),
        event("gpu_memset", "Memset (Device)", 30.0, 1.0),
        event("gpu_user_annotation", "step", 10.0, 13.0),
        event("cpu_op", "aten::mm", 5.0, 9.0),
    ]

    def export(path):
        Path(path).write_text(json.dumps({"traceEvents": events}))

    profile = nullcontext(SimpleNamespace(export_chrome_trace=export))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile)
    device = object.__new__(Device)
    monkeypatch.setattr(Device, "synchronize", lambda self: None)
    found = device.profile(lambda: None)
    assert [(launch.name, launch.grid) for launch in found] == [
        ("gemm", (8, 1, 1)), ("gemm", (4, 2, 1)), ("Memset (Device)", ())
    ]  # fmt: skip
    assert found[1].seconds == pytest.approx(3e-6)
    assert found[1].start == pytest.approx(2e-5)

"""Measurements that need a process of their own, with an empty Inductor cache."""

from __future__ import annotations

import ctypes
import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.process import Process
from benchmarks.trainer import Trainer, Workload

MIB = 2**20
#: glibc then returns every tensor to the system when it is freed, so that resident memory is
#: memory in use.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(kind: str, provider: str, shape: Workload) -> dict[str, float]:
    """Run ``kind`` ("compile" or "memory") in a fresh process with a cold cache.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="nmcompile-cold-") as cache:
        env = {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}
        if kind == "memory":
            env |= _RETURN_MEMORY
        job = (kind, provider, shape, torch.get_num_threads())
        with Process(_measure, *job, env=env, log=Path(cache) / "log") as process:
            result: dict[str, float] = process.result()
    return result


def _measure(channel: Any, kind: str, provider: str, shape: Workload, threads: int) -> None:
    torch.set_num_threads(threads)
    channel.send({"compile": compile_time, "memory": memory}[kind](provider, shape))


def compile_time(provider: str, shape: Workload) -> dict[str, float]:
    """Seconds of the first step, compilation included: wall, and CPU with the C++ compiler's."""
    # Otherwise its import, alike for all variants, dilutes the ratio.
    importlib.import_module("torch._inductor.compile_fx")
    trainer = Trainer(provider, shape)
    start, used = time.perf_counter(), os.times()
    trainer.step()
    seconds, now = time.perf_counter() - start, os.times()
    python, children = (sum(now[i : i + 2]) - sum(used[i : i + 2]) for i in (0, 2))
    return {
        "first step (s)": seconds,
        "cpu time (s)": python + children,
        "cpu time of python (s)": python,
        "cpu time of the C++ compiler (s)": children,
    }


def memory(provider: str, shape: Workload) -> dict[str, float]:
    """MiB of one step after two steps of warm-up.

    ``peak resident``: the high-water mark of resident memory, reset before the step, less the
    resident memory before the step; ``peak resident total``: without that subtraction.
    ``peak allocated``: the largest sum of live tensors that the step allocated, from PyTorch's
    own allocator events. ``saved for backward``: tensors alive between forward and backward
    that are no parameters.
    """
    trainer = Trainer(provider, shape)
    for _ in range(2):
        trainer.step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    trainer.step()
    peak = _resident("VmHWM")
    return {
        "peak resident (MiB)": peak - before,
        "peak resident total (MiB)": peak,
        "peak allocated (MiB)": _peak_allocated(trainer),
        "saved for backward (MiB)": _saved(trainer),
    }


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _peak_allocated(trainer: Trainer) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / MIB


def _saved(trainer: Trainer) -> float:
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.forward()
    loss.backward()
    return sum(kept.values()) / MIB

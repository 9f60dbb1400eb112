"""All that differs between the GPU and the rehearsal on the CPU."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nmcompile.compressed.hardware import layout_on
from nmcompile.compressed.layouts import Layout

Call = Callable[[int], Any]  # its argument selects one of several input sets
#: Input sets of one measurement take more than this together, several times the L2 cache.
ROTATED_BYTES = 512 * 2**20


class Launch(NamedTuple):
    """A kernel, copy or fill on the device: its name, seconds, and a kernel's grid."""

    name: str
    start: float
    seconds: float
    grid: tuple[int, ...]


class Device:
    """The GPU. Times are of the device, by events, unless a method says otherwise."""

    rehearsal = False
    name = "cuda"
    #: Before each chunk of timed calls the GPU waits, about 4 ms, so that the host runs ahead.
    _WAIT_CYCLES = 8_000_000

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU; --rehearse runs on the CPU")
        torch.cuda.init()

    @property
    def layout(self) -> Layout:
        """The layout that the device's library reads."""
        reads = layout_on(self.name)
        if reads.layout is None:
            raise RuntimeError(reads.reason)
        return reads.layout

    def describe(self) -> dict[str, Any]:
        """The GPU and its software."""
        properties = partial(torch.cuda.get_device_properties, 0)
        return guarded(
            {
                "gpu": lambda: properties().name,
                "capability": lambda: f"{properties().major}.{properties().minor}",
                "multiprocessors": lambda: properties().multi_processor_count,
                "memory_bytes": lambda: properties().total_memory,
                "cuda": lambda: torch.version.cuda,
                "cusparselt": lambda: torch.backends.cusparselt.version(),
                "cudnn": lambda: torch.backends.cudnn.version(),
                "nvidia-smi": partial(_nvidia_smi, _ABOUT),
            }
        )

    def time(self, calls: Mapping[str, Call], rounds: int = 6) -> dict[str, list[float]]:
        """Seconds of each call, ``5 * rounds`` samples; the calls take turns."""
        chunk, names = 5, list(calls)
        for call in calls.values():
            for i in range(3):
                call(i)
        self.synchronize()
        samples: dict[str, list[float]] = {name: [] for name in names}
        for start in range(rounds):
            for name in names[start % len(names) :] + names[: start % len(names)]:
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(chunk + 1)]
                torch.cuda._sleep(self._WAIT_CYCLES)
                marks[0].record()
                for i in range(chunk):
                    calls[name](start * chunk + i)
                    marks[i + 1].record()
                self.synchronize()
                samples[name] += [a.elapsed_time(b) * 1e-3 for a, b in pairwise(marks)]
        return samples

    def host_time(self, call: Call, repeats: int = 100) -> list[float]:
        """Seconds of the host per call, while the device is not waited for."""
        for i in range(5):
            call(i)
        samples = []
        for i in range(repeats):
            if i % 50 == 0:
                self.synchronize()  # or the queue fills and a call waits for the device
            start = time.perf_counter()
            call(i)
            samples.append(time.perf_counter() - start)
        self.synchronize()
        return samples

    def wall_time(self, run: Callable[[], Any], times: int) -> float:
        """Seconds of the wall for one of ``times`` runs in a row."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        self.synchronize()
        return (time.perf_counter() - start) / times

    def captured(self, call: Call, count: int) -> Call:
        """``call`` as CUDA graphs, one for each of its first ``count`` arguments."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(2 * count):
                call(i % count)
        torch.cuda.current_stream().wait_stream(stream)
        graphs, results = [], []
        for i in range(count):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results.append(call(i))  # kept alive, it lies in the graph's memory
            graphs.append(graph)

        def replay(i: int) -> Any:
            graphs[i % count].replay()
            return results[i % count]

        return replay

    def input_sets(self, nbytes: int) -> int:
        """How many sets of ``nbytes`` to rotate among."""
        return max(2, min(8, -(-ROTATED_BYTES // max(nbytes, 1))))

    def peak_memory(self, run: Callable[[], Any]) -> tuple[int, int]:
        """Bytes allocated before ``run`` and at its peak."""
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        self.synchronize()
        return before, torch.cuda.max_memory_allocated()

    def profile(self, run: Callable[[], Any]) -> list[Launch]:
        """What the device did in ``run``, in order; nothing where CUPTI does not work."""
        profiler = torch.profiler
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as found:
            run()
            self.synchronize()
        # The profiler's own list of events has no grids.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            found.export_chrome_trace(str(file))
            events = json.loads(file.read_text())["traceEvents"]
        launches = [
            Launch(e["name"], e["ts"] * 1e-6, e["dur"] * 1e-6, tuple(e["args"].get("grid", ())))
            for e in events
            if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        ]
        return sorted(launches, key=lambda launch: launch.start)

    def state(self) -> str:
        """Clocks, power and why the clock is held back, as they are now."""
        fields = "clocks.sm,clocks.mem,power.draw,clocks_throttle_reasons.active"
        return str(guarded({"now": partial(_nvidia_smi, fields)})["now"])

    def synchronize(self) -> None:
        """Wait for everything that was launched."""
        torch.cuda.synchronize()

    def tidy(self, graphs: bool = True) -> None:
        """Free memory between cases; with all compiled ``graphs``, whose CUDA graphs hold some."""
        gc.collect()
        trees = sys.modules.get("torch._inductor.cudagraph_trees")
        if graphs and trees is not None:
            torch._dynamo.reset()
            trees.reset_cudagraph_trees()
        torch.cuda.empty_cache()

    def lost(self) -> bool:
        """Whether an earlier error made the device unusable for this process."""
        try:
            self.synchronize()
            return int(torch.ones(2, device=self.name).sum()) != 2
        except RuntimeError:
            return True


class Rehearsal(Device):
    """The CPU in the GPU's place: tiny sizes, wall clock, figures without meaning."""

    rehearsal = True
    name = "cpu"

    def __init__(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"gpu": "rehearsal", "processor": platform.processor(), "cores": os.cpu_count()}

    def time(self, calls: Mapping[str, Call], rounds: int = 6) -> dict[str, list[float]]:
        return {name: self.host_time(call, 2) for name, call in calls.items()}

    def host_time(self, call: Call, repeats: int = 100) -> list[float]:
        samples = []
        for i in range(min(repeats, 2)):
            start = time.perf_counter()
            call(i)
            samples.append(time.perf_counter() - start)
        return samples

    def captured(self, call: Call, count: int) -> Call:
        return lambda i: call(i % count)

    def input_sets(self, nbytes: int) -> int:
        return 2

    def peak_memory(self, run: Callable[[], Any]) -> tuple[int, int]:
        run()
        return 0, 0

    def profile(self, run: Callable[[], Any]) -> list[Launch]:
        run()
        return []

    def state(self) -> str:
        return "no GPU"

    def synchronize(self) -> None:
        pass

    def tidy(self, graphs: bool = True) -> None:
        gc.collect()

    def lost(self) -> bool:
        return False


def guarded(fields: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The value of each field; where a library lacks one, the error in its place."""
    found: dict[str, Any] = {}
    for name, read in fields.items():
        try:
            found[name] = read()
        except Exception as error:
            found[name] = f"unknown: {error!r}"[:200]
    return found


_ABOUT = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"


def _nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are filled with NaN (integers with their maximum) instead of left as they are.

    So what a kernel does not write shows.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before)

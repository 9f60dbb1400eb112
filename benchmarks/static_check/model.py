"""From machine code to a time and to a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.static_check.cases import Case, compile_case
from benchmarks.static_check.sass import Machine, covering_width, disassemble
from benchmarks.static_check.throughput import DEVICES, busiest, weighted
from nmcompile.codegen.kernel_spec import Input, Operand

# Predicted time over the time of the bytes alone, by method and by number of orientations.
LIMITS = {("mse", 1): 1.25, ("mvue", 1): 1.75, ("mse", 2): 1.5, ("mvue", 2): 2.2}
# Weighted instructions per element and orientation, without a prologue.
MOST_WEIGHTED = {"mse": 10.0, "mvue": 18.0}
SIDE = 8192
# Bytes an element of what is packed: all of it, or its metadata alone.
_PACKED = {"packed": 1.125, "kept": 0.125}


@dataclass(frozen=True, slots=True)
class Result:
    """What was found about one kernel.

    Attributes:
        case: the kernel.
        machine: its code.
        load_width, store_width: bytes of one access to the inputs, and to the values and the dense
            result.
        instructions: per element of the operand, all counted alike.
        weighted: per element, by their throughput (``throughput.weighted``).
        pipe: the busiest pipe.
        bytes_floor: bytes of the inputs, values, metadata and dense results per element.
        microseconds: predicted for 8192 x 8192: the larger of the time of the bytes and that of the
            busiest pipe. None without figures of a device.
        ratio: of that to the time of ``bytes_floor``.
    """

    case: Case
    machine: Machine
    load_width: int
    store_width: int
    instructions: float
    weighted: float
    pipe: str
    bytes_floor: float
    microseconds: float | None
    ratio: float | None

    @property
    def failures(self) -> list[str]:
        """What is wrong, empty if nothing is."""
        found, least = [], 8 if self.case.halved else 16
        if self.machine.spilled:
            found.append(f"spills {self.machine.spilled} bytes")
        if self.load_width < least:
            found.append(f"loads its inputs {self.load_width} bytes at a time")
        if self.store_width < least:
            found.append(f"stores its results {self.store_width} bytes at a time")
        if self.machine.loop:
            found.append("has a loop: its instructions cannot be counted")
        if self.case.given or self.case.halved:
            return found  # how much it computes is its model's affair; measured, not predicted
        limit = LIMITS[self.case.method, _orientations(self.case)]
        if self.ratio is not None and self.ratio > limit:
            found.append(f"predicted {self.ratio:.2f}x of the bytes, over {limit:g}x")
        most = MOST_WEIGHTED[self.case.method] * _orientations(self.case)
        if self.ratio is not None and self.case.prologue == "identity" and self.weighted > most:
            found.append(f"{self.weighted:.1f} weighted instructions an element, over {most:g}")
        return found


def _orientations(case: Case) -> int:
    return 2 if case.orientations == "both" else 1


def examine(case: Case) -> Result:
    """Compile one kernel and judge it."""
    compiled = compile_case(case)
    machine = disassemble(compiled.asm["cubin"], compiled.metadata.shared)
    return judge(case, machine)


def judge(case: Case, machine: Machine) -> Result:
    """The result for machine code that is already there.

    Each operand of a kernel has programs of its own, which lie behind one another in the code. What
    is counted are those of one operand; the others are taken to be alike.
    """
    spec, elements = case.spec, case.shape.rows * case.shape.columns / (32 * case.shape.warps)
    operand, programs = spec.operands[0], len(spec.operands)
    per_element = programs / elements
    pipe, clocks = busiest(machine.opcodes, case.arch)
    floor = _loaded(spec.inputs) + sum(_PACKED.get(i.shape, 0) for i in spec.inputs)
    floor += 2 * spec.dense_results + 1.125 * (len(spec.dims) + len(spec.alike))
    microseconds = ratio = None
    if device := DEVICES.get(case.arch):
        memory = floor / device.bandwidth
        pipes = clocks * per_element / (device.multiprocessors * device.clock)
        microseconds = max(memory, pipes) * SIDE * SIDE * 1e6
        ratio = max(memory, pipes) / memory
    return Result(
        case,
        machine,
        # A kernel may read its tile again from the first-level cache: that moves no other bytes.
        # Eight bytes of flags are those of the elements that sixteen bytes of others hold.
        covering_width(machine, "LDG", _loaded(spec.inputs_of(operand), least=2) * elements),
        covering_width(machine, "STG", _stored(operand) * elements),
        machine.opcodes.total() * per_element,
        weighted(machine.opcodes, case.arch) * per_element,
        pipe,
        floor,
        microseconds,
        ratio,
    )


def _stored(operand: Operand) -> int:
    """Bytes of an element of the results, without metadata."""
    return len(operand.dims) + len(operand.alike) + 2 * operand.keep_dense


def _loaded(inputs: Iterable[Input], least: int = 1) -> int:
    """Bytes of an element of the inputs ``[R, C]``, of those of at least ``least``."""
    sizes: list[int] = [getattr(torch, i.dtype).itemsize for i in inputs if i.shape == "full"]
    return sum(size for size in sizes if size >= least)

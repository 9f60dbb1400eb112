"""How many instructions of each kind a multiprocessor finishes in a clock, and the H200's figures.

Two costs follow from the instructions of a kernel:

- *weighted*: one after the other, each at its own rate, in instructions of half rate (64 lanes a
  clock). Nothing overlaps, so it is an upper bound.
- *busiest*: the clocks of the pipe that is busiest, or of the issue slots (128 lanes a clock).
  Everything overlaps, so it is a lower bound; enough warps come near it.

Sources: rates from the CUDA C++ Programming Guide 12.x, "Throughput of Native Arithmetic
Instructions", columns 8.0, 9.0 and 10.0; pipes from the Nsight Compute documentation, "Pipelines"
(ALU: logic, shifts, compares, minima, integer adds; FMA: float32, float16 and integer products;
XU: special functions and conversions; LSU: memory and shuffles). Assumed, as neither says: a wide
integer product takes two slots, and uniform and control instructions take an issue slot alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Instructions of half rate on all three architectures are weighted 1.
HALF_RATE = 64
ISSUE = 128

_FLOAT = {"FADD", "FMUL", "FFMA"}
_HALF_FLOAT = {"HADD2", "HMUL2", "HFMA2"}
_PRODUCTS = {"IMAD", "IDP"}
_SPECIAL = {"MUFU"}
_CONVERT = {"F2F", "F2I", "I2F", "I2FP", "F2IP", "POPC", "FLO", "BREV"}
_MEMORY = {"LDG", "STG", "LDS", "STS", "LDSM", "STSM", "LDL", "STL", "SHFL", "LDC"}
_ISSUE_ONLY = {"BAR", "BRA", "EXIT", "NOP", "BSSY", "BSYNC", "WARPSYNC", "MEMBAR", "DEPBAR", "S2R"}
_WIDE = ("IMAD.WIDE", "IMAD.HI")


@dataclass(frozen=True, slots=True)
class Device:
    """Peak figures of one GPU.

    Attributes:
        name: for the table.
        multiprocessors: how many.
        clock: sustained, in Hz.
        bandwidth: of a copy, measured, in bytes per second.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float


# 1.755 GHz is held under load; the highest clock is 1.98 GHz.
DEVICES = {"sm_90": Device("H200", 132, 1.755e9, 4.3e12)}


def pipe_of(opcode: str) -> str:
    """ALU, FMA, XU, LSU, or issue for what needs an issue slot alone."""
    base = opcode.split(".")[0]
    if base in _SPECIAL or base in _CONVERT:
        return "XU"
    if base in _FLOAT or base in _HALF_FLOAT or base in _PRODUCTS:
        return "FMA"
    if base in _MEMORY:
        return "LSU"
    if base in _ISSUE_ONLY or base.startswith("U") or base in ("S2UR", "R2UR"):
        return "issue"
    return "ALU"


def lanes_per_clock(opcode: str, arch: str) -> int:
    """Lanes a clock and multiprocessor of one instruction."""
    base = opcode.split(".")[0]
    if base in _FLOAT:
        return 64 if arch == "sm_80" else 128
    if base in _HALF_FLOAT:
        return 128
    if opcode.startswith(_WIDE):
        return 32
    rates = {"XU": 16, "LSU": 32, "issue": ISSUE}
    return rates.get(pipe_of(opcode), HALF_RATE)


def weighted(opcodes: Mapping[str, int], arch: str) -> float:
    """The instructions of a thread, in instructions of half rate, one after the other."""
    return sum(count * HALF_RATE / lanes_per_clock(op, arch) for op, count in opcodes.items())


def busiest(opcodes: Mapping[str, int], arch: str) -> tuple[str, float]:
    """The pipe that takes longest, and its lane clocks for the instructions of one thread."""
    clocks = {"issue": sum(opcodes.values()) / ISSUE}
    for op, count in opcodes.items():
        pipe = pipe_of(op)
        if pipe != "issue":
            clocks[pipe] = clocks.get(pipe, 0) + count / lanes_per_clock(op, arch)
    name = max(clocks, key=lambda pipe: clocks[pipe])
    return name, clocks[name]

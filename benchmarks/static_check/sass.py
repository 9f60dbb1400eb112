"""Reading a cubin: instructions, registers, spills, widths of memory accesses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(
    r"^\s+/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][\w.]*)(?P<rest>[^;]*);"
)
_TARGET = re.compile(r"\(?`?\((?P<label>\.L_x_\w+)\)")
_LABEL = re.compile(r"^(?P<label>\.L_x_\w+):")
_USAGE = re.compile(r"(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine code of a kernel.

    Attributes:
        opcodes: how many of each instruction, with its modifiers, one thread issues.
        loop: whether a branch goes backwards: then the counts are of one pass only.
        registers: per thread.
        spilled: bytes of a thread's local memory.
        shared: bytes of shared memory, static and dynamic.
    """

    opcodes: Counter[str]
    loop: bool
    registers: int
    spilled: int
    shared: int


def disassemble(cubin: bytes, dynamic_shared: int) -> Machine:
    """The machine code of a cubin with one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = _run("nvdisasm", "-c", str(path))
        usage = dict(_USAGE.findall(_run("cuobjdump", "-res-usage", str(path))))
    opcodes, loop = _count(text)
    local = sum(opcodes[op] for op in opcodes if op.split(".")[0] in ("LDL", "STL"))
    spilled = max(int(usage["STACK"]) + int(usage["LOCAL"]), 4 * local)
    return Machine(opcodes, loop, int(usage["REG"]), spilled, dynamic_shared)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _count(text: str) -> tuple[Counter[str], bool]:
    opcodes: Counter[str] = Counter()
    seen: set[str] = set()
    pending: set[str] = set()
    loop = ended = False
    for line in text.splitlines():
        if label := _LABEL.match(line):
            seen.add(label["label"])
            pending.add(label["label"])
            continue
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        target = _TARGET.search(found["rest"])
        if found["op"].startswith("BRA") and target and target["label"] in seen:
            # The endless loop after the end of every kernel is padding.
            loop |= target["label"] not in pending
        pending.clear()
        if not ended and found["op"] != "NOP":
            opcodes[found["op"]] += 1
        ended |= found["op"] == "EXIT" and "@" not in line.split("EXIT")[0]
    return opcodes, loop


def access_width(opcode: str) -> int:
    """Bytes that one thread loads or stores."""
    for part in opcode.split("."):
        if part in ("64", "128"):
            return int(part) // 8
        if part in ("U8", "S8", "U16", "S16"):
            return int(part[1:]) // 8
    return 4


def covering_width(machine: Machine, kind: str, needed: float) -> int:
    """The width, in bytes, of the narrowest of the widest accesses that move ``needed`` bytes.

    Args:
        machine: the kernel.
        kind: "LDG" or "STG".
        needed: bytes per thread; 0 is returned when all accesses together move fewer.
    """
    moved = Counter[int]()
    for opcode, count in machine.opcodes.items():
        if opcode.split(".")[0] == kind:
            moved[access_width(opcode)] += count * access_width(opcode)
    total = 0
    for width in sorted(moved, reverse=True):
        total += moved[width]
        if total >= needed:
            return width
    return 0

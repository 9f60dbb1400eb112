"""The lines that the null GPU writes (``log.h``), and questions to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: Everything that the device would execute; a replayed graph counts once, as it does for the host.
_LAUNCHES = ("TRITON", "KERNEL", "GEMM", "CONV", "GRAPH")
_NEVER = ("BAD-GRID", "ILLEGAL-IN-CAPTURE", "OOM")
#: What Inductor names its own kernels; every other Triton kernel is the package's.
_INDUCTOR = "triton_"


@dataclass
class Log:
    """Some lines, in order: ``WORD rest``."""

    lines: list[str] = field(default_factory=list)

    @property
    def launches(self) -> list[str]:
        """Kernels, and products and convolutions of the libraries."""
        products = "CSLT matmul"
        return [x for x in self.lines if x.split(" ")[0] in _LAUNCHES or x.startswith(products)]

    @property
    def waits(self) -> list[str]:
        """Where the host waits for the device, or for what it computed."""
        return [x for x in self.lines if x.startswith(("SYNC ", "MEMCPY DtoH "))]

    @property
    def faults(self) -> list[str]:
        """Calls that a GPU would refuse."""
        return [x for x in self.lines if x.startswith(_NEVER)]

    def elsewhere(self, device: int) -> list[str]:
        """What Triton launched while another device than this one was current."""
        launches = [line for line in self.lines if line.startswith("TRITON ")]
        return [line for line in launches if int(line.partition(" @")[2] or 0) != device]

    @property
    def plans(self) -> list[str]:
        """Where cuSPARSELt is asked for a plan, which takes the host longer than a product."""
        return [line for line in self.lines if line == "CSLT plan"]

    @property
    def spills(self) -> dict[str, int]:
        """Bytes that each of the package's kernels spills, by name; the most that any variant does.

        Of every module that was loaded, from what ptxas wrote into it.
        """
        found: dict[str, int] = {}
        for line in self.lines:
            word, _, rest = line.partition(" ")
            if word == "LOAD":
                _, spilled, name = rest.split(" ", 2)
                if not name.startswith(_INDUCTOR):
                    found[name] = max(found.get(name, 0), int(spilled))
        return found


def read(prefix: Path) -> Log:
    """All that every process wrote under ``NULL_LOG=prefix``."""
    files = sorted(prefix.parent.glob(f"{prefix.name}.*"))
    return Log([line for file in files for line in file.read_text(errors="replace").splitlines()])


@contextmanager
def recorded() -> Iterator[Log]:
    """What this process logs within the block; ``lines`` are there after it.

    Raises:
        RuntimeError: nothing is logged: no null GPU, or no ``NULL_LOG``.
    """
    prefix = os.environ.get("NULL_LOG")
    file = Path(f"{prefix}.{os.getpid()}")
    if not prefix or not file.exists():
        raise RuntimeError("no log: source env.sh and set NULL_LOG")
    start = file.stat().st_size
    log = Log()
    yield log
    with file.open(errors="replace") as lines:
        lines.seek(start)
        log.lines = lines.read().splitlines()

"""What a case reports (``Session``), and the JSON and CSV that become of it (``Results``).

Between a worker and its supervisor an event is a mapping of plain values with a ``kind``:

    environment   data                            once per worker
    start         section, case, limit            the case is killed ``limit`` seconds later
    row           section, case, row              the fields of ``benchmarks.table.Row``
    check         section, case, name, passed, detail
    note          section, case, name, value
    end           section, case, status, seconds, error
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.gpu_check.device import Device
from benchmarks.gpu_check.figures import gains, targets_toml
from benchmarks.gpu_check.targets import target_of
from benchmarks.records import RESULTS
from benchmarks.table import COLUMNS, Row, percentiles

Event = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One unit of a section; ``run`` may raise.

    ``seconds`` is what must be left of the section's budget to start it; after ``limit`` seconds
    its process is killed. Cases that are ``parallel`` measure no time and may run side by side.
    """

    section: str
    name: str
    run: Callable[[Session], None]
    seconds: float = 5
    limit: float = 60
    parallel: bool = False

    @property
    def key(self) -> str:
        """``section/name``."""
        return f"{self.section}/{self.name}"


@dataclass
class Session:
    """What a case is given: the device, and where to report. ``until`` is in monotonic seconds."""

    device: Device
    send: Callable[[Event], None]
    stamp: dict[str, Any]
    facts: dict[Any, Any]
    case: Case
    until: float

    def left(self) -> float:
        """Seconds of the section's budget."""
        return self.until - time.monotonic()

    def _send(self, kind: str, **event: Any) -> None:
        self.send({"kind": kind, "section": self.case.section, "case": self.case.name, **event})

    def row(self, provider: str, metric: str, samples: Sequence[float], **rest: Any) -> Row:
        """Report a figure, in the unit that ``metric`` names."""
        mode = self.case.section
        fields = {**self.stamp, "kernel": "gpu_check", "provider": provider, "mode": mode}
        fields |= {"metric": metric, **percentiles(samples), **rest}
        place = (mode, provider, metric, fields.get("x", ""), fields.get("config", ""))
        row = Row(**fields, target="" if self.device.rehearsal else target_of(*place))
        self._send("row", row=asdict(row))
        return row

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Report whether a statement about correctness holds."""
        self._send("check", name=name, passed=bool(passed), detail=detail)

    def note(self, name: str, value: Any) -> None:
        """Report anything else."""
        self._send("note", name=name, value=value)


def stamp(environment: dict[str, Any], commit: str) -> dict[str, Any]:
    """The fields of a row that are the same for all."""
    shown = ("gpu", "cuda", "cusparselt", "triton")
    machine = ", ".join(f"{k} {environment[k]}" for k in shown if environment.get(k))
    return {"machine": machine, **records.origin("nmcompile"), "commit": commit}


class Results:
    """Everything that was reported, by section and case; saved as JSON and CSV."""

    def __init__(self, rehearsal: bool, budgets: dict[str, float]) -> None:
        self.rehearsal = rehearsal
        self.environment: dict[str, Any] = {}
        self.sections: dict[str, Any] = {
            name: {"budget": budget, "seconds": 0.0, "cases": {}}
            for name, budget in budgets.items()
        }
        self.chosen = tuple(budgets)
        self._ran: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def receive(self, event: Event) -> None:
        """Take in an event."""
        with self._lock:
            kind = event["kind"]
            if kind == "environment":
                self.environment = event["data"]
                return
            section, key = self.sections[event["section"]], (event["section"], event["case"])
            if key not in self._ran:
                self._ran.add(key)
                section |= records.origin("time")
                section["environment"] = self.environment
                section["cases"][key[1]] = {
                    "status": "running", "rows": [], "checks": [], "notes": {}
                }  # fmt: skip
            case = section["cases"][key[1]]
            if kind == "row":
                case["rows"].append(event["row"])
            elif kind == "check":
                case["checks"].append({k: event[k] for k in ("name", "passed", "detail")})
            elif kind == "note":
                case["notes"][event["name"]] = event["value"]
            elif kind == "end":
                failed = any(not check["passed"] for check in case["checks"])
                kept = event["status"] in ("error", "crashed") or not failed
                status = event["status"] if kept else "failed"
                case |= {"status": status, "seconds": event["seconds"], "error": event["error"]}
                section["seconds"] += event["seconds"]

    def cases(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Section, name and record of each case."""
        for section, record in self.sections.items():
            for name, case in record["cases"].items():
                yield section, name, case

    def rows(self) -> list[Row]:
        """The rows of all sections."""
        return [Row(**row) for _, _, case in self.cases() for row in case["rows"]]

    @property
    def sound(self) -> bool:
        """Whether every check of this run passed and no case ended in an error or a crash."""
        return all(
            case["status"] in ("ok", "skipped", "cut off")
            for section, name, case in self.cases()
            if (section, name) in self._ran
        )

    @property
    def stem(self) -> str:
        """The files' name without extension."""
        gpu = str(self.environment.get("gpu", "unknown")).lower().replace("nvidia", "")
        words = "".join(c if c.isalnum() else " " for c in gpu).split()
        return "gpu_check_" + "_".join(words)

    def load_earlier(self, folder: Path) -> None:
        """Take over, from an earlier file, the cases that did not run (yet)."""
        try:
            earlier = json.loads((folder / f"{self.stem}.json").read_text())["sections"]
        except (OSError, ValueError, KeyError):
            return
        with self._lock:
            for name, section in earlier.items():
                own = self.sections.setdefault(name, section)
                own["cases"] = {**section["cases"], **own["cases"]}

    def save(self, folders: Iterable[Path], verdict: Sequence[dict[str, Any]] = ()) -> list[Path]:
        """Write the JSON and the CSV into each folder.

        Raises:
            ValueError: for figures of a rehearsal or a null GPU in ``benchmarks/results``.
        """
        with self._lock:
            written = []
            content = {
                "schema_version": 1,
                "rehearsal": self.rehearsal,
                "environment": self.environment,
                "sections": self.sections,
                "verdict": list(verdict),
            }
            text = json.dumps(_plain(content), indent=1)
            lines, gpu = gains(self.cases()), str(self.environment.get("gpu"))
            stand_in = self.rehearsal or NULL_GPU in gpu
            about = gpu, str(self.environment.get("commit", "")), stand_in
            figures = targets_toml(*about, self.rows(), lines) if lines else ""
            for folder in folders:
                refuse_stand_in(self.rehearsal, gpu, folder)
                path = folder / f"{self.stem}.json"
                records.save(path, text)
                records.write(path.with_suffix(".csv"), map(asdict, self.rows()), COLUMNS)
                if lines:
                    text_of_gains = json.dumps(_plain(lines), indent=1)
                    records.save(folder / f"{self.stem}_gains.json", text_of_gains)
                if figures:
                    records.save(folder / f"{self.stem}_targets.toml", figures)
                written.append(path)
            return written


#: In the name of a device that does nothing (tools/nullgpu).
NULL_GPU = "(null GPU)"


def refuse_stand_in(rehearsal: bool, gpu: str, folder: Path) -> None:
    """Raise ValueError where a stand-in's figure could be taken for a GPU's."""
    if (rehearsal or NULL_GPU in gpu) and folder.resolve().is_relative_to(RESULTS):
        what = f"of {gpu}" if NULL_GPU in gpu else "of a rehearsal"
        raise ValueError(f"figures {what} do not belong in {RESULTS}: choose another --out")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

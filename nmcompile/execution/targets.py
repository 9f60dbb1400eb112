"""GPUs to decide for, as data: ``targets.toml``, each figure measured or assumed and from where.

Decisions are made for a target and never ask the machine; its own GPU is one way to get one
(``target_of``), a name another (``named``). ``NMCOMPILE_TARGETS`` names a file of the same form as
``targets.toml``; what it has replaces what the package has, figure by figure, and a table of gains
as a whole. That is how a measurement gets in (``to_toml`` writes such a file).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nmcompile.compressed import hardware, plans
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import OptionError, nearest

#: The environment variable that names a file of targets.
OWN_TARGETS = "NMCOMPILE_TARGETS"
#: A version of cuSPARSELt that reads the layouts; a GPU that is not there is taken to have one.
_LIBRARY = 800


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    """A number, in bytes, FLOPs and seconds, whether it was measured, and where it is from."""

    value: float = Field(gt=0, allow_inf_nan=False)
    known: Literal["measured", "assumed"]
    source: str


class Figures(_Frozen):
    """Rates that well-written kernels reach; what each is, ``targets.toml`` says."""

    bandwidth: Figure
    dense: Figure
    gain: Figure
    launch: Figure
    setup: Figure


#: ``setup`` of a GPU where plans are kept, unless a file of one's own has it.
KEPT_PLAN = Figure(value=plans.CALL, known="measured", source="a kept plan, on an H100's host")


class Gain(_Frozen):
    """How much faster the sparse product ``[rows, k] x [k, columns]`` is than the dense one."""

    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    k: int = Field(gt=0)
    gain: float = Field(gt=0, allow_inf_nan=False)
    known: Literal["measured", "assumed"]
    source: str

    def distance(self, rows: int, columns: int, k: int) -> float:
        """From another shape: the sum of the sizes' ratios, as powers of two."""
        pairs = ((self.rows, rows), (self.columns, columns), (self.k, k))
        return sum(abs(math.log2(own / max(1, other))) for own, other in pairs)


class Target(_Frozen):
    """A GPU to decide for: ``layout`` None means that nothing runs sparse there, ``reason`` why.

    ``figures`` is None where nothing can be predicted: on a CPU, whose operators decode the
    compressed operand and multiply densely, and on a GPU without figures.
    """

    name: str
    gpu: str
    words: tuple[str, ...] = Field(default=(), description="in the device's name, any of them")
    capability: tuple[int, int] | None = None
    layout: Layout | None = None
    reason: str = ""
    figures: Figures | None = None
    gains: tuple[Gain, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether operands are unpacked and multiplied densely there, as on a CPU."""
        return self.capability is None and self.layout is not None

    def gain(self, rows: int, columns: int, k: int) -> float:
        """Of the sparse product of this shape over the dense one: that of the nearest shape."""
        assert self.figures is not None
        if not self.gains:
            return self.figures.gain.value
        return min(self.gains, key=lambda g: g.distance(rows, columns, k)).gain

    def __str__(self) -> str:
        version = ".".join(map(str, self.capability or ()))
        layout = f"layout {self.layout}" if self.layout else f"nothing sparse: {self.reason}"
        lines = [f"{self.name}: {self.gpu}, compute capability {version}, {layout}"]
        if self.figures is None:
            return "\n".join([*lines, "  no figures: nothing can be predicted"])
        for field, (unit, scale) in _SHOWN.items():
            figure: Figure = getattr(self.figures, field)
            value = f"{figure.value * scale:g} {unit}".strip()
            lines.append(f"  {field:<9} {value:<14} {figure.known:<8} {figure.source}")
        for g in self.gains:
            shape = f"{g.rows} x {g.columns} x {g.k}"
            lines.append(f"  gain of {shape}: {g.gain:g}, {g.known}, {g.source}")
        return "\n".join(lines)


_SHOWN = {
    "bandwidth": ("TB/s", 1e-12),
    "dense": ("TFLOP/s", 1e-12),
    "gain": ("", 1.0),
    "launch": ("us", 1e6),
    "setup": ("us", 1e6),
}


class Targets(dict[str, Target]):
    """Targets by name; shown with what is known and what is assumed of each."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self.values()))

    __str__ = __repr__


def targets() -> Targets:
    """Every GPU that can be planned for by name, ``explain(model, ..., target="h100")``.

    ``print`` shows each figure, whether it was measured or is assumed, and its source.

    Raises:
        OptionError: the file that ``NMCOMPILE_TARGETS`` names cannot be read.
    """
    return Targets(_known(os.environ.get(OWN_TARGETS, "")))


def named(name: str | Target) -> Target:
    """The target of that name, or the one that is given.

    Raises:
        OptionError: there is none; the message has the nearest one.
    """
    if isinstance(name, Target):
        return name
    if not isinstance(name, str):
        raise OptionError(
            f"a target is a name of nmcompile.targets(), not a {type(name).__name__}: give a model "
            "that has an input of that name this input by position"
        )
    known = targets()
    word = name.lower()
    if word not in known:
        hint = nearest(word, known)
        raise OptionError(f"{name!r} is no target: {hint} (nmcompile.targets() lists them)")
    return known[word]


def target_of(device: str) -> Target:
    """The target that a device of this machine is: ``"cpu"``, ``"cuda:0"``, ..."""
    reads, kind = hardware.layout_on(device), torch.device(device)
    if kind.type != "cuda" or not torch.cuda.is_available():
        return Target(name=kind.type, gpu="none", layout=reads.layout, reason=reads.reason)
    gpu = torch.cuda.get_device_name(kind)
    capability = torch.cuda.get_device_capability(kind)
    like = next((t for t in targets().values() if any(w in gpu for w in t.words)), None)
    found = like or Target(name=device, gpu=gpu)
    machine = {"gpu": gpu, "capability": capability, **reads._asdict()}
    return found.model_copy(update=machine)


def fingerprint() -> str:
    """What decisions depend on beside the graph, the policy and the package: GPU and figures."""
    own = os.environ.get(OWN_TARGETS, "")
    content = hashlib.sha256(_content(Path(own))).hexdigest() if own else ""
    content += " plans are kept" if plans.asked() else ""
    if not torch.cuda.is_available():
        return f"cpu {content}"
    library = hardware.cusparselt_version()
    return f"{torch.cuda.get_device_name()} cusparselt {library} {hardware.has_triton()} {content}"


def to_toml(found: Iterable[Target]) -> str:
    """Targets as the text of a file that ``NMCOMPILE_TARGETS`` can name."""
    own = {"layout", "reason", "name"}
    data = {t.name: t.model_dump(mode="json", exclude=own, exclude_none=True) for t in found}
    return tomli_w.dumps({"schema": 1, **data})


@functools.cache
def _known(own: str) -> dict[str, Target]:
    data = _read(Path(__file__).with_name("targets.toml"))
    if plans.asked():
        for keys in data.values():
            keys["figures"]["setup"] = KEPT_PLAN.model_dump()
    for name, keys in (_read(Path(own)) if own else {}).items():
        merged = {**data.get(name, {}), **keys}
        figures = {**data.get(name, {}).get("figures", {}), **keys.get("figures", {})}
        data[name] = {**merged, **({"figures": figures} if figures else {})}
    try:
        return {name: _target(name, keys) for name, keys in data.items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OptionError(f"targets of {own or 'the package'}: {where}: {first['msg']}") from error


def _target(name: str, keys: Mapping[str, Any]) -> Target:
    target = Target.model_validate({**keys, "name": name})
    if target.capability is None:
        return target
    reads = hardware.layout_of(target.gpu, target.capability, _LIBRARY)
    return target.model_copy(update=reads._asdict())


@functools.cache
def _content(path: Path) -> bytes:
    """Read once a process: what is compiled later is decided by the same figures."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"targets of {path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(_content(path).decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number too long
        raise OptionError(f"targets of {path}: {error}") from error
    if data.pop("schema", None) != 1 or not all(isinstance(v, dict) for v in data.values()):
        raise OptionError(f"targets of {path}: write schema = 1 and a table for each GPU")
    return data

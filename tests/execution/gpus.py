"""GPUs of round figures: what is tested is the model, and not what was measured of one."""

from __future__ import annotations

from nmcompile.execution.targets import Figure, Figures, Target, named


def _of(name: str, bandwidth: float, dense: float) -> Target:
    values = {"bandwidth": bandwidth, "dense": dense, "gain": 1.35, "launch": 3e-6, "setup": 30e-6}
    figures = {k: Figure(value=v, known="assumed", source="here") for k, v in values.items()}
    return named(name).model_copy(update={"figures": Figures(**figures), "gains": ()})


H100 = _of("h100", 3.0e12, 798e12)
H200 = _of("h200", 4.3e12, 788e12)

"""The N:M format, at most ``n`` non-zeros in every block of ``m``, and how they are chosen."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from enum import StrEnum

from nmcompile.errors import FormatError, shown

MAX_M = 32
#: How a format is written.
PATTERN = r"[ \t\r\n]*([0-9]{1,9})[ \t\r\n]*:[ \t\r\n]*([0-9]{1,9})[ \t\r\n]*"


@dataclass(frozen=True, slots=True)
class NMFormat:
    """At most ``n`` of every ``m`` consecutive elements along the reduction dimension survive.

    Raises:
        FormatError: unless ``1 <= n <= m <= 32``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("m", self.m)):
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                given = f"NMFormat({shown(self.n)}, {shown(self.m)})"
                raise FormatError(f"{given}: N and M are integers, such as NMFormat(2, 4)")
            object.__setattr__(self, name, operator.index(value))  # NumPy's integers as well
        if not 1 <= self.n <= self.m <= MAX_M:
            form = f"{shown(self.n)}:{shown(self.m)}"
            raise FormatError(
                f"{form} is not an N:M format: 1 <= N <= M <= {MAX_M} must hold, "
                'for example "2:4" keeps 2 of every 4 elements'
            )

    @classmethod
    def parse(cls, text: str | NMFormat) -> NMFormat:
        """Read ``"2:4"`` (an ``NMFormat`` is returned as it is)."""
        if isinstance(text, NMFormat):
            return text
        match = re.fullmatch(PATTERN, text) if isinstance(text, str) else None
        if match is None:
            given = shown(text)
            raise FormatError(f'{given} is not an N:M format: write two integers, such as "2:4"')
        return cls(int(match[1]), int(match[2]))

    @property
    def density(self) -> float:
        """Kept share of the elements, n/m."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


class Method(StrEnum):
    """How the survivors of a block are chosen."""

    MSE = "mse"
    MVUE = "mvue"
    APPROX_MVUE = "approx-mvue"
    UNIFORM = "uniform"
    TRANSPOSABLE = "transposable"

    @property
    def random(self) -> bool:
        """Whether the method draws random numbers."""
        return self in (Method.MVUE, Method.APPROX_MVUE, Method.UNIFORM)

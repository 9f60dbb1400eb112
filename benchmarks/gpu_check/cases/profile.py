"""What a step's time goes to, by classes of kernels."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from benchmarks.gpu_check.device import Launch

#: The class of the package's own kernels.
OURS = "compress and masks"
#: The first class whose pattern a kernel's name has; in the libraries' names, too.
CLASSES = {
    OURS: r"^(compress|prune|keep|transposable|unpack)_",
    "elementwise": r"^triton_",
    "sparse product": r"sparse|spmma",
    "attention": r"flash|fmha|attention|sdpa|dot_do_o|convert_dq",
    "convolution": r"conv|implicit|[fwd]prop|[dw]grad",
    "dense product": r"gemm|nvjet|cutlass|cublas|xmma|splitk|gemv|_mm_",
    "optimizer": r"multi_tensor|adam",
    "copies and fills": r"memcpy|memset|copy|fill",
}
Figures = tuple[float, int]  # seconds and launches


def class_of(kernel: str, sparse: Container[str] = ()) -> str:
    """The class of a kernel, by its name; ``"other"`` where none fits.

    Those of the library may be named like dense ones: ``sparse`` has the names that it launches.
    """
    if kernel in sparse:
        return "sparse product"
    found = (name for name, words in CLASSES.items() if re.search(words, kernel, re.I))
    return next(found, "other")


def by_name(launches: Iterable[Launch]) -> dict[str, Figures]:
    """The sum of each kernel, the longest first."""
    return _sums((launch.name, launch.seconds) for launch in launches)


def by_class(launches: Iterable[Launch], sparse: Container[str] = ()) -> dict[str, Figures]:
    """The sum of each class that there is, the longest first."""
    return _sums((class_of(launch.name, sparse), launch.seconds) for launch in launches)


def _sums(parts: Iterable[tuple[str, float]]) -> dict[str, Figures]:
    sums: dict[str, Figures] = {}
    for name, seconds in parts:
        before = sums.get(name, (0.0, 0))
        sums[name] = before[0] + seconds, before[1] + 1
    return dict(sorted(sums.items(), key=lambda item: -item[1][0]))

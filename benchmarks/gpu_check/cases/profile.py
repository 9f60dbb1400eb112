"""What a step's time goes to, by classes of kernels."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The first class whose pattern a kernel's name has; in the libraries' names, too.
CLASSES = {
    "compress and masks": r"^(compress|prune|keep|transposable|unpack)_",
    "elementwise": r"^triton_",
    "sparse product": r"sparse|spmma",
    "convolution": r"conv|implicit|[fwd]prop|[dw]grad",
    "attention": r"flash|fmha|attention|sdpa",
    "dense product": r"gemm|nvjet|cutlass|cublas|xmma|splitk|gemv|_mm_",
    "optimizer": r"multi_tensor|adam",
    "copies and fills": r"memcpy|memset|copy|fill",
}
Figures = tuple[float, int]  # seconds and launches


def class_of(kernel: str) -> str:
    """The class of a kernel, by its name; ``"other"`` where none fits."""
    found = (name for name, words in CLASSES.items() if re.search(words, kernel, re.I))
    return next(found, "other")


def by_class(kernels: Mapping[str, Figures]) -> dict[str, Figures]:
    """The sum of each class that there is, the longest first."""
    sums: dict[str, Figures] = {}
    for kernel, (seconds, launches) in kernels.items():
        name = class_of(kernel)
        before = sums.get(name, (0.0, 0))
        sums[name] = before[0] + seconds, before[1] + launches
    return dict(sorted(sums.items(), key=lambda item: -item[1][0]))

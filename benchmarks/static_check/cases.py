"""Which kernels are checked, and their compilation for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from nmcompile.codegen.device import exemplars, host

# The layouts that the sparse matrix products of each architecture read; the first one is checked
# in all combinations. row_major stands for architectures whose layout is not known.
LAYOUTS = {
    "sm_80": ("cusparselt_sm80", "cutlass_sm80"),
    "sm_90": ("cusparselt_sm90", "row_major"),
    "sm_100": ("row_major",),
}
ORIENTATIONS = ("rows", "columns", "both")


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel.

    Attributes:
        arch: "sm_80", "sm_90" or "sm_100".
        method, n, orientations, storage, layout, prologue: as of the device functions.
        fit: what it may assume of the sizes.
        tile: None for the package's own choice.
        isa: None for the architecture's own, 0 for plain Triton.
    """

    arch: str
    method: str
    n: int
    orientations: str
    storage: str
    layout: str
    prologue: str = "identity"
    fit: str = "full"
    tile: host.Tile | None = None
    isa: int | None = None

    @property
    def name(self) -> str:
        """What ``--kernel`` matches."""
        parts = (self.method, f"{self.n}:{2 * self.n}", self.orientations, self.storage)
        extra = (self.layout, self.prologue, *(() if self.fit == "full" else (self.fit,)))
        return "-".join((*parts, *extra))

    @property
    def shape(self) -> host.Tile:
        """The tile."""
        return self.tile or host.tile(self.orientations, self.method)


def all_cases(architectures: tuple[str, ...]) -> list[Case]:
    """The kernels of the given architectures: all combinations on sm_90, a selection elsewhere."""
    cases = []
    for arch in architectures:
        first, *others = LAYOUTS[arch]
        for method, n, orientations in product(("mse", "mvue"), (2, 1), ORIENTATIONS):
            case = Case(arch, method, n, orientations, "bf16", first)
            cases.append(case)
            if n == 2:
                cases += [replace(case, layout=layout) for layout in others]
            if arch == "sm_90" and (n == 2 or orientations == "rows"):
                cases.append(replace(case, storage="fp16"))
            if arch == "sm_90" and n == 2:
                cases.append(replace(case, prologue="gelu"))
                cases.append(replace(case, fit="aligned"))
    return cases


def compile_case(case: Case, ones: Collection[str] = ()) -> CompiledKernel:
    """The compiled kernel.

    ``ones`` names the sizes and strides that are 1, of which Triton makes constants at a launch.
    """
    kernel = getattr(exemplars, f"{case.orientations}_kernel")
    capability = int(case.arch.removeprefix("sm_"))
    pointer = "*bf16" if case.storage == "bf16" else "*fp16"
    types = {"seed": "*i64", "x": pointer, "blob": pointer, "transposed_blob": pointer}
    constants = {
        "PROLOGUE": case.prologue,
        "METHOD": case.method,
        "N": case.n,
        "LAYOUT": case.layout,
        "STORAGE": case.storage,
        "ROWS": case.shape.rows,
        "COLUMNS": case.shape.columns,
        "FIT": case.fit,
        "ISA": capability if case.isa is None else case.isa,
    }
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in ones:
            signature[name], values[(index,)] = "constexpr", 1
        elif name in constants:
            signature[name], values[(index,)] = "constexpr", constants[name]
        else:
            signature[name] = types.get(name, "i32")
            # What a launch finds out by itself: pointers and sizes that are multiples of 16.
            if "stream" not in name and name != "seed" and case.fit != "ragged":
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": case.shape.warps})

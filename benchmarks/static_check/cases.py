"""Which kernels are checked, and their compilation for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks.static_check.prologues import PROLOGUES
from nmcompile.codegen import launch, loader
from nmcompile.codegen.device import host
from nmcompile.codegen.kernel_spec import STORAGE, KernelSpec
from nmcompile.codegen.printer import parameters
from nmcompile.compressed.layouts import Layout

# The layouts that the sparse matrix products of each architecture read; the first one is checked
# in all combinations. row_major stands for architectures whose layout is not known.
LAYOUTS = {
    "sm_80": ("cusparselt_sm80", "cutlass_sm80"),
    "sm_90": ("cusparselt_sm90", "row_major"),
    "sm_100": ("row_major",),
}
#: By name: the dimensions that the blocks run along.
ORIENTATIONS = {"rows": (1,), "columns": (0,), "both": (1, 0)}
_POINTERS = {
    "bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "bool": "*i1", "int64": "*i64",
}  # fmt: skip
_DTYPES = {storage: str(dtype).removeprefix("torch.") for dtype, storage in STORAGE.items()}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel.

    Attributes:
        arch: "sm_80", "sm_90" or "sm_100".
        method, n, orientations, storage, layout: as of the device functions.
        prologue: "identity", "gelu" or "swiglu".
        fit: what it may assume of the sizes.
        tile: None for the package's own choice.
        isa: None for the architecture's own, 0 for plain Triton.
        given: the kernel itself, where a model has it; ``model`` is which, under which recipe.
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
    given: KernelSpec | None = None
    model: str = ""

    @classmethod
    def of(cls, arch: str, spec: KernelSpec, model: str) -> Case:
        """The case of a kernel that a model has."""
        kind = (spec.method, spec.n, spec.orientations, spec.storage, str(spec.layout))
        return cls(arch, *kind, prologue=spec.digest[:6], given=spec, model=model)

    @property
    def name(self) -> str:
        """What ``--kernel`` matches."""
        return "-".join((self.source_name, *(() if self.fit == "full" else (self.fit,))))

    @property
    def source_name(self) -> str:
        """The same, without what is chosen after the kernel is printed."""
        if self.given:
            return f"{self.model}: {self.given.name}-{self.prologue}"
        parts = (self.method, f"{self.n}:{2 * self.n}", self.orientations, self.storage)
        return "-".join((*parts, self.layout, self.prologue))

    @property
    def spec(self) -> KernelSpec:
        """What the printer is given."""
        if self.given:
            return self.given
        prologue, dtype = PROLOGUES[self.prologue], _DTYPES[self.storage]
        return KernelSpec(
            inputs=prologue.inputs_of(dtype),
            statements=prologue.statements,
            operands=(prologue.operand(ORIENTATIONS[self.orientations]),),
            n=self.n,
            m=2 * self.n,
            method=self.method,
            layout=Layout(self.layout),
            dtype=dtype,
        )

    @property
    def shape(self) -> host.Tile:
        """The tile."""
        kind = self.orientations, self.method, self.computes
        return self.tile or host.tile(*kind, small=self.small)

    @property
    def computes(self) -> bool:
        """Whether it computes what it compresses."""
        return bool(self.spec.statements)

    @property
    def small(self) -> bool:
        """Whether the package gives it a small tile."""
        return self.fit == "ragged" or self.spec.crowded

    @property
    def halved(self) -> bool:
        """Whether a thread has one group of four columns at hand, eight bytes, instead of two.

        Where a kernel of both orientations computes, that was measured to be faster
        (``gpu_check``, section ``tiles``), although it takes more instructions.
        """
        return self.orientations == "both" and (self.computes or self.small)


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
                cases += [replace(case, prologue=name) for name in ("gelu", "swiglu")]
                cases.append(replace(case, fit="aligned"))
    return cases


def compile_case(case: Case, ones: Collection[str] = ()) -> CompiledKernel:
    """The compiled kernel, as printed and loaded.

    ``ones`` names the sizes and strides that are 1, of which Triton makes constants at a launch.
    """
    spec = case.spec
    kernel = loader.load(spec)
    capability = int(case.arch.removeprefix("sm_"))
    types = {i.name: _POINTERS[i.dtype] for i in spec.inputs} | {"seed": "*i64"}
    types |= dict.fromkeys(launch.result_names(spec), _POINTERS[spec.dtype])
    constants = {
        "ROWS": case.shape.rows,
        "COLUMNS": case.shape.columns,
        "FIT": case.fit,
        "ISA": capability if case.isa is None else case.isa,
    }
    constants |= dict.fromkeys(ones, 1)
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate([*parameters(spec), "ROWS", "COLUMNS", "FIT", "ISA"]):
        if name in constants:
            signature[name], values[(index,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name, "i32")
        # What a launch finds out by itself: pointers and sizes that are multiples of 16.
        if not name.startswith("stream") and name != "seed" and case.fit != "ragged":
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": case.shape.warps})

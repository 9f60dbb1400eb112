"""From a ``KernelSpec`` to its Triton source: what varies is printed, the rest imported."""

from __future__ import annotations

import functools
import textwrap
from importlib import resources
from typing import Protocol

import jinja2

from nmcompile.codegen.kernel_spec import Input, KernelSpec
from nmcompile.codegen.pointwise import FUNCTIONS

_LOADS = {
    "full": ("load", "load({name}, {name}_stride, at, R, C, FIT)"),
    "per_column": ("load_per_column", "load_per_column({name}, at, C, FIT)"),
    "per_row": ("load_per_row", "load_per_row({name}, 1, at, R)"),
    "scalar": ("load_scalar", "load_scalar({name})"),
}
#: Inputs that a fragment has four pieces of; of the others there is one.
_IN_PIECES = ("full", "per_column")


def parameters(spec: KernelSpec) -> list[str]:
    """The kernel's arguments before its constants, in order.

    Pointers of the inputs, of the dense result and of the packed ones; R and C; row strides of
    the inputs ``[R, C]`` and of the dense result; for MVUE the seed's pointer and the streams.
    """
    full = [i.name for i in spec.inputs if i.shape == "full"]
    dense = ["dense"] if spec.keep_dense else []
    names = [i.name for i in spec.inputs] + dense + _blobs(spec) + ["R", "C"]
    names += [f"{name}_stride" for name in (*full, *dense)]
    return names + _random(spec)


class Spec(Protocol):
    """What a kernel's text depends on."""

    @property
    def name(self) -> str:
        """Of the kernel."""

    def __hash__(self) -> int: ...


@functools.singledispatch
def print_kernel(spec: Spec) -> str:
    """The source of a module that holds the kernel under the name ``spec.name``."""
    raise NotImplementedError(type(spec))


@print_kernel.register
def _(spec: KernelSpec) -> str:
    full = [i.name for i in spec.inputs if i.shape == "full"]
    dense = ["dense"] if spec.keep_dense else []
    packed_names = [i.name for i in spec.inputs] + dense
    packed_names += [f"{name}_stride" for name in (*full, *dense)]
    imports = {"load_words"} if not spec.statements else {"round_words"}
    if spec.statements:
        imports |= {_LOADS[i.shape][0] for i in spec.inputs}
    if spec.keep_dense:
        imports.add("store_dense")
    called = [f for f in FUNCTIONS if any(f"{f}(" in s.expression for s in spec.statements)]
    random = _random(spec)
    streams = random[1:] or ["0"] * len(spec.dims)
    return template("kernel.py.jinja").render(
        spec=spec,
        what=_describe(spec),
        spec_lines=textwrap.wrap(spec.to_json(), 90, break_on_hyphens=False),
        imports=sorted(imports),
        functions=called,
        packed_names=packed_names,
        load=lambda i: _LOADS[i.shape][1].format(name=i.name),
        pieces=functools.partial(_pieces, spec.inputs),
        parameters=parameters(spec),
        # Else the streams 0, 1 and 16 would each be a kernel of their own.
        decoration=f"(do_not_specialize={random[1:]!r})" if random else "",
        # The tile functions take the orientation along the columns first.
        blobs=_in_order(spec, _blobs(spec)),
        random=["tl.load(seed)" if random else "0", *_in_order(spec, streams)],
    )


def _describe(spec: KernelSpec) -> str:
    last = spec.statements[-1].target if spec.statements else spec.inputs[0].source
    along = {"rows": "its columns", "columns": "its rows", "both": "its columns and its rows"}
    return (
        f"{last} [R, C] in {spec.dtype}, {spec.n}:{spec.m} {spec.method} along "
        f"{along[spec.orientations]}, layout {spec.layout}"
    )


def _blobs(spec: KernelSpec) -> list[str]:
    return [f"packed{i}" for i in range(len(spec.dims))]


def _random(spec: KernelSpec) -> list[str]:
    streams = [f"stream{i}" for i in range(len(spec.dims))]
    return ["seed", *streams] if spec.method == "mvue" else []


def _in_order(spec: KernelSpec, names: list[str]) -> list[str]:
    return [name for _, name in sorted(zip(spec.dims, names, strict=True), reverse=True)]


def _pieces(inputs: tuple[Input, ...], piece: int) -> str:
    return ", ".join(
        f"{i.name}_[{piece}]" if i.shape in _IN_PIECES else f"{i.name}_" for i in inputs
    )


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    text = (resources.files("nmcompile.codegen") / name).read_text(encoding="utf-8")
    return jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    ).from_string(text)

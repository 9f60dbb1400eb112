"""From a ``KernelSpec`` to its Triton source: what varies is printed, the rest imported."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

import jinja2

from nmcompile.codegen.kernel_spec import PACKED, Input, KernelSpec, Statement
from nmcompile.codegen.pointwise import FUNCTIONS

_LOADS = {
    "full": ("load", "load({name}, {name}_stride, at, R, C, FIT, ISA)"),
    "per_column": ("load_per_column", "load_per_column({name}, at, C, FIT, ISA)"),
    "per_row": ("load_per_row", "load_per_row({name}, 1, at, R)"),
    "scalar": ("load_scalar", "load_scalar({name})"),
    "packed": ("load_packed", 'load_packed({name}, at, R, C, "{layout}", FIT)'),
    "kept": ("load_kept", 'load_kept({name}, at, R, C, "{layout}", FIT)'),
}
#: Inputs that a fragment has four pieces of; of the others there is one.
_IN_PIECES = ("full", "per_column", *PACKED)


@dataclass(frozen=True)
class _Printed:
    """An operand as the template has it; names of its results and streams along columns first."""

    number: int
    value: str
    keep_dense: bool
    inputs: tuple[Input, ...]
    statements: tuple[Statement, ...]
    packed: list[str]
    random: list[str]
    alike: list[tuple[str, str]]  # inputs, and their results


def parameters(spec: KernelSpec) -> list[str]:
    """The kernel's arguments before its constants, in order.

    Pointers of the inputs and of the results, dense ones first, those of ``alike`` last; R and C;
    row strides of the inputs ``[R, C]``; for MVUE the seed's pointer and the streams.
    """
    full = [i.name for i in spec.inputs if i.shape == "full"]
    names = [i.name for i in spec.inputs] + _dense(spec) + _numbered("packed", spec)
    names += [*alike(spec), "R", "C"]
    return names + [f"{name}_stride" for name in full] + _random(spec)


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
    operands = list(_printed(spec))
    packed_names = [i.name for i in spec.inputs] + _dense(spec)
    packed_names += [f"{i.name}_stride" for i in spec.inputs if i.shape == "full"]
    imports = {"round_words" if o.statements else "load_words" for o in operands}
    read = [i for o in operands if o.statements for i in o.inputs]
    imports |= {_LOADS[i.shape][0] for i in read if i.shape not in PACKED}
    if _dense(spec):
        imports.add("store_dense")
    if spec.alike:
        imports.add("load_words")
    streams = _random(spec)[1:]
    return template("kernel.py.jinja").render(
        spec=spec,
        operands=operands,
        what=_describe(spec),
        tile_function=f"{'compress' if spec.dims else 'compute'}_{spec.orientations}",
        spec_lines=textwrap.wrap(spec.to_json(), 90, break_on_hyphens=False),
        imports=sorted(imports),
        unpacking=sorted({_LOADS[i.shape][0] for i in read if i.shape in PACKED}),
        functions=called_functions(spec.statements),
        packed_names=packed_names,
        load=lambda i: _LOADS[i.shape][1].format(name=i.name, layout=i.layout),
        pieces=_pieces,
        parameters=parameters(spec),
        # Else the streams 0, 1 and 16 would each be a kernel of their own.
        decoration=f"(do_not_specialize={streams!r})" if streams else "",
    )


def called_functions(statements: Iterable[Statement]) -> list[str]:
    """The functions of ``codegen.device.functions`` that these call."""
    expressions = [s.expression for s in statements]
    return [f for f in FUNCTIONS if any(f"{f}(" in e for e in expressions)]


def _printed(spec: KernelSpec) -> Iterator[_Printed]:
    packed, random = iter(_numbered("packed", spec)), _random(spec)
    seed, streams = "tl.load(seed)" if random else "0", iter(random[1:] or ["0"] * len(spec.dims))
    results = iter(alike(spec))
    for number, operand in enumerate(spec.operands):
        # The tile functions take the orientation along the columns first.
        rank = sorted(range(len(operand.dims)), key=lambda k: -operand.dims[k])
        names, drawn = ([next(it) for _ in rank] for it in (packed, streams))
        yield _Printed(
            number,
            operand.value,
            operand.keep_dense,
            spec.inputs_of(operand),
            spec.prologue(operand),
            [names[k] for k in rank],
            [seed, *(drawn[k] for k in rank)],
            [(name, next(results)) for name in operand.alike],
        )


def _describe(spec: KernelSpec) -> str:
    targets = {s.name: s.target for s in spec.statements}
    targets |= {i.name: i.source for i in spec.inputs}
    values = " and ".join(targets[o.value] for o in spec.operands)
    if not spec.dims:
        return f"{values} [R, C] in {spec.dtype}"
    along = {"rows": "its columns", "columns": "its rows", "both": "its columns and its rows"}
    return (
        f"{values} [R, C] in {spec.dtype}, {spec.n}:{spec.m} {spec.method} along "
        f"{along[spec.orientations]}, layout {spec.layout}"
    )


def _dense(spec: KernelSpec) -> list[str]:
    return [f"dense{k}" for k, operand in enumerate(spec.operands) if operand.keep_dense]


def alike(spec: KernelSpec) -> list[str]:
    """The kernel's names of what it packs like an operand."""
    return [f"alike{k}" for k in range(len(spec.alike))]


def _numbered(word: str, spec: KernelSpec) -> list[str]:
    return [f"{word}{k}" for k in range(len(spec.dims))]


def _random(spec: KernelSpec) -> list[str]:
    return ["seed", *_numbered("stream", spec)] if spec.method == "mvue" else []


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

"""A small interpreter of PTX for straight-line kernels, one NumPy array a register.

It stands in for the GPU where the inline instructions are concerned: the rest of the device
functions is proved by Triton's interpreter, which cannot run them. Written from the PTX ISA 8.x
manual, chapter 9.7, without regard to how the kernels use an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LINE = re.compile(r"^\s*(?:@(?P<guard>!?%p\d+)\s+)?(?P<op>[a-z][\w.]*)\s+(?P<rest>[^;]*);")
_PARAMETER = re.compile(r"\.param\s+[^,)]*?\b(\w+_param_\d+)")
_SIGN, _REST = np.uint32(0x80008000), np.uint32(0x7FFF7FFF)
_HALVES = ("bf16x2", "f16x2")


def _f(x: Array) -> Array:
    return x.astype(np.uint32).view(np.float32)


def _u(x: Array) -> Array:
    return np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)


def _signed(x: Array, bits: int) -> Array:
    return ((x.astype(np.uint64) << np.uint64(64 - bits)).view(np.int64)) >> np.int64(64 - bits)


def _prmt(a: Array, b: Array, c: Array) -> Array:
    pair = (a & np.uint64(0xFFFFFFFF)) | (b << np.uint64(32))
    out = np.zeros_like(pair)
    for i in range(4):
        nibble = (c >> np.uint64(4 * i)) & np.uint64(15)
        byte = (pair >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        spread = (byte >> np.uint64(7)) * np.uint64(255)
        out |= np.where(nibble & np.uint64(8), spread, byte) << np.uint64(8 * i)
    return out


def _dp4a(a: Array, b: Array, c: Array) -> Array:
    for i in range(4):
        shift, byte = np.uint64(8 * i), np.uint64(255)
        c = c + ((a >> shift) & byte) * ((b >> shift) & byte)
    return c


def _lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    out = np.zeros_like(a)
    for row in range(8):
        terms = (x if row >> place & 1 else ~x for x, place in ((a, 2), (b, 1), (c, 0)))
        both = np.bitwise_and.reduce([np.broadcast_to(t, out.shape) for t in terms])
        out |= np.where(table >> np.uint64(row) & np.uint64(1), both, np.uint64(0))
    return out


def _max_halves(op: str, a: Array, b: Array) -> Array:
    """``max{.NaN}{.xorsign.abs}`` of two packed halves: on bits, whose order is that of floats."""
    infinity = 0x7F80 if "bf16x2" in op else 0x7C00
    out = np.zeros_like(a)
    assert ".NaN" in op
    for shift in (0, 16):
        x, y = ((v >> np.uint64(shift)).astype(np.int64) & 0xFFFF for v in (a, b))
        sign = (x ^ y) & 0x8000
        if ".xorsign.abs" not in op:
            assert not ((x | y) & 0x8000).any()
        x, y = x & 0x7FFF, y & 0x7FFF
        nan = (x > infinity) | (y > infinity)
        larger = np.maximum(x, y) | (sign if ".xorsign.abs" in op else 0)
        out |= np.where(nan, 0x7FFF, larger).astype(np.uint64) << np.uint64(shift)
    return out


def _round_half(x: Array, bf16: bool) -> Array:
    if not bf16:
        return x.astype(np.float16).view(np.uint16).astype(np.uint64)
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), np.uint64(0x7FFF), nearest)


def _round_up_sum(a: Array, b: Array) -> Array:
    exact = a.astype(np.float64) + b
    nearest = exact.astype(np.float32)
    return np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _compare(relation: str, a: Array, b: Array) -> Array:
    unordered = len(relation) == 3
    relation = relation[:2] if unordered else relation
    functions = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
                 "eq": np.equal, "ne": np.not_equal}  # fmt: skip
    result = functions[relation](a, b)
    return result | np.isnan(a) | np.isnan(b) if unordered else result


def _float(op: str, v: Sequence[Array]) -> Array | None:
    """Instructions whose operands are float32; None for others."""
    kind = op.split(".")[0]
    if kind in ("add", "sub", "mul", "min", "max", "abs", "neg", "fma") and op.endswith(".f32"):
        assert ".ftz" not in op
        x = [_f(a) for a in v]
        if ".rp" in op:
            return _u(_round_up_sum(x[0], x[1]))
        functions: dict[str, Callable[..., Array]] = {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax,
            "abs": np.abs, "neg": np.negative,
            # The kernels' products are of small integers or powers of two: exact in float64.
            "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
        }  # fmt: skip
        return _u(functions[kind](*x))
    if kind == "set":
        _, relation, _, _ = op.split(".")
        return _u(_compare(relation, _f(v[0]), _f(v[1])))
    if op == "cvt.f32.f16":
        return _u(v[0].astype(np.uint16).view(np.float16).astype(np.float32))
    return None


def _integer(op: str, v: Sequence[Array]) -> Array:
    kind, *_, type_ = op.split(".")
    bits = int(re.sub(r"\D", "", type_.removesuffix("x2")) or 1)
    if kind in ("mul", "mad") and ".wide" in op:
        a, b = (x & np.uint64(0xFFFFFFFF) for x in v[:2])
        if type_ == "s32":
            a, b = _signed(a, 32).view(np.uint64), _signed(b, 32).view(np.uint64)
        product = a * b
        return product + v[2] if kind == "mad" else product
    if kind in ("add", "sub", "mul", "mad"):
        if kind == "mad":
            return v[0] * v[1] + v[2]
        return {"add": np.add, "sub": np.subtract, "mul": np.multiply}[kind](v[0], v[1])
    if kind in ("and", "or", "xor"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[kind](*v)
    if kind == "not":
        return ~v[0]
    if kind in ("min", "max"):
        assert type_ == "s32"
        pick = np.minimum if kind == "min" else np.maximum
        return pick(_signed(v[0], 32), _signed(v[1], 32)).view(np.uint64)
    if kind == "shl":
        return v[0] << v[1]
    if kind == "shr":
        if type_.startswith("s"):
            return (_signed(v[0], bits) >> v[1].astype(np.int64)).view(np.uint64)
        return v[0] >> v[1]
    if kind == "cvt":
        source = type_
        wide = int(source[1:])
        return _signed(v[0], wide).view(np.uint64) if source[0] == "s" else v[0]
    simple: dict[str, Callable[..., Array]] = {
        "prmt": _prmt, "dp4a": _dp4a, "lop3": _lop3, "mov": lambda a: a
    }  # fmt: skip
    return simple[kind](*v)


def run(text: str, buffers: Sequence[Array], threads: int, block: int) -> None:
    """Run the kernel in ``text`` on buffers (int32, one for each pointer argument), in place."""
    registers: dict[str, Array] = {}
    names = _PARAMETER.findall(text)
    base = {name: np.uint64(i + 1) << np.uint64(40) for i, name in enumerate(names)}
    index = np.arange(threads, dtype=np.uint64)
    registers["%tid.x"], registers["%ctaid.x"] = index % np.uint64(block), index // np.uint64(block)

    def value(name: str) -> Array:
        name = name.strip()
        if name.startswith("%"):
            return registers[name]
        number = int("0x" + name[2:], 16) if name.startswith(("0f", "0x")) else int(name)
        return np.full(threads, number & (2**64 - 1), np.uint64)

    def memory(address: str) -> tuple[Array, Array]:
        at = value(address.strip(" []").removesuffix("+ 0"))
        which = int(at[0] >> np.uint64(40)) - 1
        return buffers[which], ((at & np.uint64(2**40 - 1)) // np.uint64(4)).astype(np.int64)

    def width(name: str) -> int:
        kind = re.sub(r"\d", "", name)
        return {"%rs": 16, "%rd": 64, "%p": 1}.get(kind, 32)

    body = text[text.index("{", text.index(".entry")) :]
    for line in re.sub(r"//[^\n]*", "", body).splitlines():
        found = _LINE.match(line)
        if not found or found["op"].startswith((".", "ret")):
            continue
        op, rest = found["op"], found["rest"]
        guard = np.ones(threads, bool)
        if found["guard"]:
            guard = value(found["guard"].lstrip("!")).astype(bool) ^ found["guard"].startswith("!")
        if op.startswith("st.global"):
            address, source = rest.split("],")
            buffer, at = memory(address)
            data = value(source.strip(" {}"))
            buffer[at[guard]] = data[guard].astype(np.uint32).view(np.int32)
            continue
        packed = re.match(r"\s*\{(.*?)\}\s*,(.*)", rest)
        targets = packed[1].split(",") if packed else [rest.split(",")[0]]
        targets = [t.strip() for t in targets]
        operands = (packed[2] if packed else rest.partition(",")[2]).strip()
        if op.startswith("ld.param"):
            results = [np.full(threads, base[operands.strip(" []")], np.uint64)]
        elif op.startswith("ld.global"):
            buffer, at = memory(operands)
            words = (buffer[at + k].view(np.uint32) for k in range(len(targets)))
            results = [np.where(guard, word, 0).astype(np.uint64) for word in words]
        elif packed:
            whole, half = value(operands), np.uint64(16 if op == "mov.b32" else 32)
            results = [whole, whole >> half]
        elif operands.startswith("{"):
            low, high = (value(x) for x in operands.strip("{}").split(","))
            shift = np.uint64(16 if op == "mov.b32" else 32)
            results = [low | (high << shift)]
        else:
            v = [value(x) for x in operands.split(",")]
            results = [_execute(op, v)]
        for target, result in zip(targets, results, strict=True):
            if target == "_":
                continue
            mask = np.uint64(2 ** width(target) - 1)
            new = np.asarray(result).astype(np.uint64) & mask
            old = registers.get(target, np.zeros(threads, np.uint64))
            registers[target] = np.where(guard, new, old)


def _execute(op: str, v: Sequence[Array]) -> Array:
    kind = op.split(".")[0]
    if kind == "max" and op.endswith(_HALVES):
        return _max_halves(op, v[0], v[1])
    if kind == "cvt" and ".rn." in op and any(f".{half}." in op for half in _HALVES):
        with np.errstate(over="ignore"):
            low, high = (_round_half(_f(x), ".bf16x2." in op) for x in (v[1], v[0]))
        return low | (high << np.uint64(16))
    if kind == "setp":
        relation, type_ = op.split(".")[1], op.split(".")[-1]
        if type_ == "f32":
            return _compare(relation, _f(v[0]), _f(v[1]))
        bits = int(type_[1:])
        a, b = (_signed(x, bits) if type_[0] == "s" else x for x in v[:2])
        return _compare(relation, a, b)
    if kind == "selp":
        return np.where(v[2].astype(bool), v[0], v[1])
    with np.errstate(all="ignore"):
        result = _float(op, v)
    return _integer(op, v) if result is None else result

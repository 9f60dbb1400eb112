"""Single instructions that Triton has no operation for, each with a plain form of the same meaning.

``ISA`` is what inline PTX may use: 0 for none (the plain form: Triton's interpreter, other vendors)
or the compute capability, 80 and up. Everything above this file is written once, in terms of these
functions, so that the interpreter proves the algorithm that the GPU runs; what remains to be
trusted is that each instruction does what PTX ISA 8.x, chapter 9.7, says.

Words are int32 tensors that hold two 16-bit elements, the lower index in the low half.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def byte_permute(a, b, selector, ISA: tl.constexpr):
    """Bytes of the pair ``b:a``; nibble i of ``selector`` names byte i of the result.

    PTX ``prmt.b32``: only the low 16 bits of ``selector`` count, and a nibble of 8 + k stands for
    the highest bit of byte k, eight times.
    """
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, selector], tl.int32, True, 1
        )
    else:
        pair = (a.to(tl.int64) & 0xFFFFFFFF) | (b.to(tl.int64) << 32)
        long = pair * 0
        for i in tl.static_range(4):
            nibble = (selector + pair * 0) >> (4 * i)
            byte = (pair >> ((nibble & 7) * 8)) & 0xFF
            byte = tl.where((nibble & 8) == 0, byte, (byte >> 7) * 0xFF)
            long |= byte << (8 * i)
        result = long.to(tl.int32)
    return result


@triton.jit
def dot_bytes(a, weights: tl.constexpr, total, ISA: tl.constexpr):
    """``total`` + the sum of byte i of ``a`` times byte i of ``weights``, unsigned (PTX dp4a)."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [a, weights, total], tl.int32, True, 1
        )
    else:
        result = total
        for i in tl.static_range(4):
            result += ((a >> (8 * i)) & 0xFF) * ((weights >> (8 * i)) & 0xFF)
    return result


@triton.jit
def _larger16(a, b, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The larger of two words of non-negative elements; NaN wins (and is 0x7FFF in PTX)."""
    if ISA >= 80:
        asm: tl.constexpr = (
            "max.NaN.bf16x2 $0, $1, $2;" if STORAGE == "bf16" else "max.NaN.f16x2 $0, $1, $2;"
        )
        result = tl.inline_asm_elementwise(asm, "=r,r,r", [a, b], tl.int32, True, 1)
    else:
        # The bits of magnitudes are in the order of the magnitudes, and NaN is above infinity.
        infinity: tl.constexpr = 0x7F80 if STORAGE == "bf16" else 0x7C00
        low, high = tl.maximum(a & 0xFFFF, b & 0xFFFF), tl.maximum(a >> 16, b >> 16)
        low = tl.where(low > infinity, 0x7FFF, low)
        high = tl.where(high > infinity, 0x7FFF, high)
        result = low | (high << 16)
    return result


@triton.jit
def raise16(word, floor, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """Each element with its sign and the larger of its magnitude and that of ``floor``.

    ``floor`` is a word of non-negative elements. NaN becomes 0x7FFF. One instruction from 8.6 on:
    ``xorsign.abs`` compares magnitudes and gives the product of the signs.
    """
    if ISA >= 86:
        asm: tl.constexpr = (
            "max.NaN.xorsign.abs.bf16x2 $0, $1, $2;"
            if STORAGE == "bf16"
            else "max.NaN.xorsign.abs.f16x2 $0, $1, $2;"
        )
        result = tl.inline_asm_elementwise(asm, "=r,r,r", [word, floor], tl.int32, True, 1)
    else:
        larger = _larger16(word & 0x7FFF7FFF, floor, STORAGE, ISA)
        result = (larger & 0x7FFF7FFF) | (word & -0x7FFF8000)
    return result


@triton.jit
def magnitudes16(word, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """Both magnitudes of a word, with every NaN replaced by 0x7FFF."""
    if ISA >= 86:
        asm: tl.constexpr = (
            "max.NaN.xorsign.abs.bf16x2 $0, $1, $1;"
            if STORAGE == "bf16"
            else "max.NaN.xorsign.abs.f16x2 $0, $1, $1;"
        )
        result = tl.inline_asm_elementwise(asm, "=r,r", [word], tl.int32, True, 1)
    else:
        bits = word & 0x7FFF7FFF
        result = _larger16(bits, bits, STORAGE, ISA)
    return result


@triton.jit
def multiply(a, b, ISA: tl.constexpr):
    """``a * b`` in float32, rounded on its own: never half of a fused multiply-add."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1
        )
    else:
        result = a * b
    return result


@triton.jit
def add_up(a, b, ISA: tl.constexpr):
    """``a + b`` in float32, rounded up, for b a power of two and 0 <= a < b / 2."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "add.rp.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1
        )
    else:
        nearest = a + b
        # nearest - b is exact, and the last place of nearest is b 2^-23.
        result = tl.where(nearest - b < a, nearest + b * 2.0**-23, nearest)
    return result


@triton.jit
def at_most(a, b, ISA: tl.constexpr):
    """1.0 where ``a <= b``, else 0.0 (also for NaN), as float32: one instruction."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "set.le.f32.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1
        )
    else:
        result = tl.where(a <= b, 1.0, 0.0)
    return result


@triton.jit
def above(a, b, ISA: tl.constexpr):
    """0.0 where ``a <= b``, else 1.0 (also for NaN), as float32: one instruction."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "set.gtu.f32.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1
        )
    else:
        result = tl.where(a <= b, 0.0, 1.0)
    return result


@triton.jit
def and_or(word, MASK: tl.constexpr, BITS: tl.constexpr, ISA: tl.constexpr):
    """``word & MASK | BITS`` in one instruction, for which the compiler takes two (lop3)."""
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [word, MASK, BITS], tl.int32, True, 1
        )
    else:
        result = (word & MASK) | BITS
    return result


@triton.jit
def magnitude_pair(word, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """The magnitudes of both elements as float32.

    The absolute value is opaque to LLVM, which would make it a mask, an instruction of its own: in
    PTX it is a free modifier of the operands that use it.
    """
    low, high = low_float(word, STORAGE), high_float(word, STORAGE)
    if ISA >= 80:
        low = tl.inline_asm_elementwise("abs.f32 $0, $1;", "=f,f", [low], tl.float32, True, 1)
        high = tl.inline_asm_elementwise("abs.f32 $0, $1;", "=f,f", [high], tl.float32, True, 1)
    else:
        low, high = tl.abs(low), tl.abs(high)
    return low, high


@triton.jit
def load_four(base, offset, ISA: tl.constexpr):
    """Four consecutive float32 at ``base`` + 4 ``offset``, 16 bytes at a time.

    One instruction for which Triton takes four: it gives a thread neighbouring elements of a
    tensor, and here a thread has neighbouring groups of four.
    """
    at = base + offset.to(tl.int64) * 4
    if ISA >= 80:
        result = tl.inline_asm_elementwise(
            "ld.global.v4.f32 {$0, $1, $2, $3}, [$4];", "=f,=f,=f,=f,l", [at],
            (tl.float32, tl.float32, tl.float32, tl.float32), False, 1,
        )  # fmt: skip
    else:
        result = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    return result


@triton.jit
def zero_like(words, ISA: tl.constexpr):
    """Zeros, int32, which the compiler spreads over the threads as it does ``words``.

    An index that starts from them needs no exchange between threads to meet ``words``.
    """
    if ISA >= 80:
        result = tl.inline_asm_elementwise("mov.b32 $0, 0;", "=r,r", [words], tl.int32, True, 1)
    else:
        result = words & 0
    return result


@triton.jit
def low_float(word, STORAGE: tl.constexpr):
    """The lower element of a word as float32."""
    if STORAGE == "bf16":
        result = (word << 16).to(tl.float32, bitcast=True)
    else:
        result = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return result


@triton.jit
def high_float(word, STORAGE: tl.constexpr):
    """The upper element of a word as float32."""
    if STORAGE == "bf16":
        result = (word & -65536).to(tl.float32, bitcast=True)
    else:
        result = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return result


@triton.jit
def round_pair(low, high, STORAGE: tl.constexpr, ISA: tl.constexpr):
    """A word of two float32, each rounded to nearest even."""
    if ISA >= 80:
        asm: tl.constexpr = (
            "cvt.rn.bf16x2.f32 $0, $2, $1;" if STORAGE == "bf16" else "cvt.rn.f16x2.f32 $0, $2, $1;"
        )
        result = tl.inline_asm_elementwise(asm, "=r,f,f", [low, high], tl.int32, True, 1)
    else:
        result = (round16(low, STORAGE) & 0xFFFF) | (round16(high, STORAGE) << 16)
    return result


@triton.jit
def round16(value, STORAGE: tl.constexpr):
    """The bits of a float32 rounded to nearest even."""
    if STORAGE == "bf16":
        # Integers, because the interpreter has no bfloat16 arithmetic.
        bits = value.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = tl.where(value == value, nearest, 0x7FFF)
    else:
        result = value.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    return result

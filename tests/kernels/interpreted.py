"""Run generated kernels in Triton's interpreter and compare them with the oracle, bit for bit.

Started by ``test_generated.py`` in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import itertools
import sys

import torch

from nmcompile.codegen import launch, unpack
from nmcompile.codegen.evaluate import evaluate
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.compressed.layouts import Layout
from nmcompile.ops import masks
from nmcompile.ops.schemas import KeepMask, Prune
from tests.kernels.specs import SIZES, all_specs, inputs_of

SEED = torch.tensor([0x123456789ABCDEF])


def check(spec: KernelSpec, rows: int, columns: int, device: str = "cpu") -> None:
    """The kernel against the oracle: of the prologue within a rounding, of the packing exactly."""
    inputs = [x.to(device) for x in inputs_of(spec, rows, columns)]
    streams = list(range(3, 3 + len(spec.dims)))
    seed = SEED.to(device) if spec.method == "mvue" else None
    results = [r.cpu() for r in launch.run(spec, inputs, seed, streams)]
    operand = evaluate(spec, [x.cpu() for x in inputs], rows, columns)
    if spec.keep_dense:
        # exp differs in its last place, and then the rounding; the masks are of what was written.
        torch.testing.assert_close(results[-1], operand, rtol=2e-3, atol=1e-6)
        operand = results[-1]
    elif spec.statements:
        return
    packed = torch.ops.nm.compress(
        operand,
        None if seed is None else SEED,
        streams,
        spec.dims,
        spec.n,
        spec.m,
        spec.method,
        str(spec.layout),
    )
    for mine, expected in zip(results, packed, strict=False):
        bits = mine.view(torch.int16), expected.view(torch.int16)
        both_nan = mine.isnan() & expected.isnan()
        values = spec.layout.padded(rows, columns)
        assert mine.shape == expected.shape
        assert ((bits[0] == bits[1]) | both_nan).all(), (spec.name, rows, columns, values)


def check_expanding(layout: Layout, rows: int, columns: int) -> None:
    """What reads a packed operand: the operand, its mask, another tensor at the kept places."""
    x, other = torch.randn(2, rows, columns).half()
    (packed,) = torch.ops.nm.compress(x, None, [0], [1], 2, 4, "mse", str(layout))
    dense = unpack.decompress(packed, rows, columns, layout)
    assert torch.equal(dense, torch.ops.nm.decompress(packed, rows, columns, str(layout)))
    mask = unpack.unpack_mask(packed, rows, columns, layout)
    assert torch.equal(mask, torch.ops.nm.unpack_mask(packed, rows, columns, str(layout)))
    like = unpack.compress_like(other, packed, layout)
    assert torch.equal(like, torch.ops.nm.compress_like(other, packed, str(layout)))


def check_masks(method: str, n: int, m: int) -> None:
    """What nm::prune and nm::keep_mask are on CUDA, for tensors of several dimensions."""
    seed = SEED if method == "mvue" else None
    for shape, dims in (((2, 3, 40), [2]), ((2, 3, 40), [0, 1]), ((70, 22), [0]), ((9, 30), [-1])):
        x = torch.randn(shape).half()
        x.view(-1)[::5] = 0
        arguments = (x, seed, 3, n, m, dims, method)
        assert masks.as_matrix(Prune(*arguments)) is not None
        for op in (Prune, KeepMask):
            assert torch.equal(masks.on_cuda(op(*arguments)), op(*arguments).run())
    transposed = torch.randn(40, 64).half().t()
    for dim in (0, 1):
        call = Prune(transposed, seed, 3, n, m, [dim], method)
        mine, theirs = masks.on_cuda(call), call.run()
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def main(part: int, parts: int) -> None:
    if part == 0:
        for method, (n, m) in itertools.product(("mse", "mvue"), ((2, 4), (1, 2))):
            check_masks(method, n, m)
        for layout in Layout:
            for rows, columns in ((64, 64), (70, 22)):
                check_expanding(layout, rows, columns)
            print(f"expand {layout} ok", flush=True)
    for number, spec in enumerate(all_specs()):
        if number % parts == part:
            for rows, columns in SIZES:
                check(spec, rows, columns)
            print(f"{spec.name} {spec.layout} ok", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Importable Triton functions from which every generated kernel is composed.

A generated kernel is two functions: ``operand``, which loads the inputs of one fragment of a tile,
applies the elementwise prologue in float32 and rounds; and a kernel that hands ``operand`` to a
tile function. silu(gate) * up + bias, 2:4 MVUE in both orientations of a ``[R, C]`` operand::

    from __future__ import annotations

    import triton
    import triton.language as tl

    from nmcompile.codegen.device.both import compress_both
    from nmcompile.codegen.device.tiles import load, load_per_column, round_words, store_dense


    @triton.jit
    def prologue(gate, up, bias):
        return gate / (1.0 + tl.exp(-gate)) * up + bias


    @triton.jit
    def operand(at, inputs, R, C, FIT: tl.constexpr, ISA: tl.constexpr):
        gate, gate_stride, up, up_stride, bias, dense, dense_stride = inputs
        x0 = load(gate, gate_stride, at, R, C, FIT, ISA)  # four pieces, float32 [T, G]
        x1 = load(up, up_stride, at, R, C, FIT, ISA)
        x2 = load_per_column(bias, at, C, FIT, ISA)       # four pieces, float32 [1, G]
        pieces = (
            prologue(x0[0], x1[0], x2[0]),
            prologue(x0[1], x1[1], x2[1]),
            prologue(x0[2], x1[2], x2[2]),
            prologue(x0[3], x1[3], x2[3]),
        )
        words = round_words(pieces, at, R, C, "bf16", FIT, ISA)
        store_dense(dense, dense_stride, words, at, R, C, FIT)     # optional
        return words


    @triton.jit
    def kernel(
        gate, up, bias, dense, blob, transposed_blob, R, C,
        gate_stride, up_stride, dense_stride, seed, stream, transposed_stream,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIT: tl.constexpr, ISA: tl.constexpr,
    ):
        inputs = (gate, gate_stride, up, up_stride, bias, dense, dense_stride)
        compress_both(
            operand, inputs, blob, transposed_blob, R, C, tl.load(seed), stream, transposed_stream,
            "mvue", 2, "cusparselt_sm90", "bf16", ROWS, COLUMNS, FIT, ISA,
        )

    tile = host.tile("both", "mvue", computes=True)     # rows, columns, warps
    fit = host.fit_of(R, C, [row strides], [data pointers], tile.rows, tile.columns)
    kernel[host.launch_grid(R, C, tile.rows, tile.columns)](
        ..., ROWS=tile.rows, COLUMNS=tile.columns, FIT=fit, ISA=90, num_warps=tile.warps,
    )

Tile functions: ``rows.compress_rows`` (blocks along the columns: the blob of x ``[R, C]``),
``columns.compress_columns`` (blocks along the rows: the blob of the transpose ``[C, R]``) and
``both.compress_both``; the first two take one blob and one stream. ``dense.compute_dense`` takes
neither: what ``operand`` stores is all that is written. ``operand`` is called once for each
fragment of the tile, and by ``compress_both`` a second time for the other orientation: the inputs
then come from the cache, and ``store_dense`` does nothing. So no output may share memory with an
input.

A kernel of several operands that share inputs gives each a program of its own at every tile
(``if tl.program_id(0) % OPERANDS == k``, ``launch_grid(..., operands=OPERANDS)``), and hands their
number to the tile functions.

The other loads of an operand: ``load_words`` (the words of a 16-bit x as they are: the identity
prologue, ``return load_words(x, x_stride, at, R, C, FIT)``), ``load_per_row(ptr, stride, at, R)``
(one piece ``[T, 1]``, used for all four columns) and ``load_scalar(ptr)``. ``load`` takes any
input type; 16-bit types and float32 are read 16 bytes at a time, flags eight. An input of one row
or one column is a broadcast. Pieces outside the operand are zero before the prologue, and its
result is zeroed there by ``round_words``. ``packed.load_packed(blob, at, R, C, LAYOUT, FIT)`` and
``load_kept`` give the pieces of a packed ``[R, C]`` input and of its keep mask. ``functions`` has
sigmoid and silu with half the instructions of ``tl.exp`` and a division.

Arguments: ``R, C`` and row strides are int32 (elements; the last dimension is contiguous); ``seed``
a pointer to one int64; streams int32. Constexprs: METHOD "mse" or "mvue"; N 2 for 2:4, 1 for 1:2;
LAYOUT "cusparselt_sm90", "cusparselt_sm80", "cutlass_sm80" or "row_major"; STORAGE "bf16" or
"fp16"; ROWS and COLUMNS, powers of two, at least 64 and 64; FIT see ``tiles``; ISA 0 in the
interpreter, else the compute capability (80, 90, 100). A blob is allocated as
``empty(Layout(layout).packed_shape(R, C, dtype))``, aligned to 16 bytes; the kernel writes all of
it, padding too.

Mask kernels (``codegen.masks``) are another family: ``prune`` on top of ``survivors``, every method
for any N:M, and ``blocks``, where blocks lie in any tensor.

The masks do not depend on ``enable_fp_fusion`` (only ISA 0 on a GPU would need it off, for
``primitives.multiply``). How it is proved without a GPU: ``tests/kernels``; how fast
it should be: ``python -m benchmarks.static_check``.
"""

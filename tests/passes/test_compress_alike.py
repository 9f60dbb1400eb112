"""What is saved of a kernel's inputs at the kept places, the kernel writes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nmcompile.ops.schemas import CompressLike
from tests.passes.fused import compress, fused, half, nm

LAYOUT = "cusparselt_sm90"


def test_inputs_at_the_kept_places_are_written_by_the_kernel() -> None:
    """Whatever the shape in which the graph has them; one that is asked for twice, once."""

    def f(gate: Any, up: Any) -> Any:
        (packed,) = compress((F.silu(gate) * up).reshape(64, 128))
        first, second = gate.reshape(64, 128), up.reshape(64, 128)
        kept = [nm.compress_like(x, packed, LAYOUT) for x in (second, first, second)]
        return packed, *kept

    tensors = half(2, 32, 128), half(2, 32, 128, seed=1)
    gm, (spec,) = fused(f, *tensors)
    assert len(spec.alike) == 2
    assert not CompressLike.nodes(gm.graph)
    packed, up, gate, again = gm(*tensors)
    for found, x in ((gate, tensors[0]), (up, tensors[1]), (again, tensors[1])):
        assert torch.equal(found, nm.compress_like(x.reshape(64, 128), packed, LAYOUT))


def test_the_operand_is_still_written_for_others() -> None:
    def f(gate: Any, up: Any) -> Any:
        h = F.silu(gate) * up
        (packed,) = compress(h)
        return packed, nm.compress_like(gate, packed, LAYOUT), h @ h.t()

    tensors = half(64, 128), half(64, 128, seed=1)
    gm, (spec,) = fused(f, *tensors)
    assert (len(spec.alike), spec.dense_results) == (1, 1)
    packed, kept, square = gm(*tensors)
    assert torch.equal(kept, nm.compress_like(tensors[0], packed, LAYOUT))
    torch.testing.assert_close(square, f(*tensors)[2], rtol=5e-2, atol=0.5)


def test_what_the_kernel_does_not_read_is_packed_by_itself() -> None:
    def f(gate: Any, up: Any, other: Any) -> Any:
        (packed,) = compress(F.silu(gate) * up)
        return packed, nm.compress_like(other, packed, LAYOUT)

    gm, (spec,) = fused(f, *(half(64, 128, seed=k) for k in range(3)))
    assert not spec.alike
    assert len(CompressLike.nodes(gm.graph)) == 1


def test_places_of_random_masks_and_of_other_orientations_are_read_again() -> None:
    def random(gate: Any, up: Any, seed: Any) -> Any:
        (packed,) = compress(F.silu(gate) * up, seed=seed)
        return packed, nm.compress_like(gate, packed, LAYOUT)

    def across(gate: Any, up: Any, _: Any) -> Any:
        (packed,) = compress(F.silu(gate) * up, (0,))
        return packed, nm.compress_like(gate.t().contiguous(), packed, LAYOUT)

    seed = torch.ones(1, dtype=torch.int64)
    for f in (random, across):
        gm, (spec,) = fused(f, half(64, 128), half(64, 128, seed=1), seed)
        assert not spec.alike
        assert len(CompressLike.nodes(gm.graph)) == 1

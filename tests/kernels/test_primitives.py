"""The instructions that the device functions are made of, against PyTorch.

On a GPU they are inline instructions of its own, in the interpreter their plain forms.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_check.cases.inputs import DTYPES, word
from nmcompile.codegen.device import primitives
from nmcompile.codegen.device.functions import silu
from nmcompile.codegen.device.philox import philox
from nmcompile.codegen.kernel_spec import STORAGE as STORAGES
from tests.kernels.target import Target


@triton.jit
def _primitives(
    a, b, permuted, total, rounded, function, words, random, STORAGE: tl.constexpr,
    ISA: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, 256)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(permuted + i, primitives.byte_permute(x, y, 0xF3A5, ISA))
    tl.store(total + i, primitives.dot_bytes(x, 0x40100402, 5, ISA))
    u, v = x.to(tl.float32, bitcast=True), y.to(tl.float32, bitcast=True)
    tl.store(rounded + i, primitives.round_pair(u, v, STORAGE, ISA))
    tl.store(function + i, silu(tl.load(function + i), ISA))
    w = philox(tl.load(words + i), tl.load(words + i) * 0, 0, tl.load(random) * 0)
    tl.store(random + i, w[0].to(tl.int64) | (w[3].to(tl.int64) << 32))


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8).view(-1, 4).long()


@pytest.mark.on("cuda", "interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflows that are meant
@pytest.mark.parametrize("dtype", DTYPES, ids=word)
def test_primitives(device: Target, dtype: torch.dtype) -> None:
    a = torch.randint(-(2**31), 2**31, (256,)).int()
    b = torch.where(torch.arange(256) < 128, torch.randn(256).view(torch.int32), a.flip(0))
    a[0], b[0] = 0x7F7FFFFF, 0x3F808000
    x = torch.linspace(-10, 10, 256)
    empty = torch.zeros(256, dtype=torch.int32)
    given = [a, b, empty, empty.clone(), empty.clone(), x.clone(), torch.arange(256).int()]
    given = [t.to(device.name) for t in (*given, torch.zeros(256, dtype=torch.int64))]
    isa = 0
    if device.kind == "cuda":
        major, minor = torch.cuda.get_device_capability()
        isa = 10 * major + minor
    _primitives[(1,)](*given, STORAGE=STORAGES[dtype], ISA=isa)
    permuted, total, rounded, function, _, random = (t.cpu() for t in given[2:])
    bytes_a, bytes_b = _bytes(a), _bytes(b)
    # 0xF3A5: byte 1 of b, the sign of byte 2 of a, byte 3 of a, the sign of byte 3 of b.
    sign = [(part >> 7) * 255 for part in (bytes_a[:, 2], bytes_b[:, 3])]
    wanted = torch.stack([bytes_b[:, 1], sign[0], bytes_a[:, 3], sign[1]], 1)
    assert torch.equal(_bytes(permuted), wanted)
    weights = torch.tensor([0x02, 0x04, 0x10, 0x40])
    assert torch.equal(total.long(), 5 + (bytes_a * weights).sum(1))
    pairs = rounded.view(dtype).view(-1, 2)
    for mine, source in ((pairs[:, 0], a), (pairs[:, 1], b)):
        expected = source.view(torch.float32).to(dtype)
        equal = mine.view(torch.int16) == expected.view(torch.int16)
        assert (equal | (mine.isnan() & expected.isnan())).all()
    torch.testing.assert_close(function, F.silu(x), rtol=1e-5, atol=1e-6)
    # Random123's known answer for counter 0 and key 0 with seven rounds.
    assert int(random[0]) & (2**64 - 1) == 0x4F730A48_5F6FB709

"""The eager API: shapes, generators and messages."""

from __future__ import annotations

import pytest
import torch

from nmcompile import functional as nm
from nmcompile.errors import ArgumentError, FormatError


def test_prune_is_the_mask_applied():
    x = torch.randn(6, 10)
    assert torch.equal(nm.prune(x), x * nm.keep_mask(x))
    assert (nm.keep_mask(x)[:, :8].unflatten(1, (2, 4)).sum(-1) == 2).all()
    assert nm.keep_mask(x, dim=0)[:4].sum() == 20
    keep = nm.keep_mask(x, "1:2", method="transposable")
    assert (keep.unflatten(1, (5, 2)).unflatten(0, (3, 2)).sum(1) == 1).all()


def test_the_generator_decides_the_mask():
    x = torch.randn(64, 64)

    def draw(seed):
        return nm.prune(x, method="mvue", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    g = torch.Generator().manual_seed(1)
    first, second = (nm.prune(x, method="mvue", generator=g) for _ in range(2))
    assert not torch.equal(first, second)
    mask = nm.keep_mask(x, method="mvue", generator=torch.Generator().manual_seed(1))
    assert torch.equal(mask, first != 0)
    torch.manual_seed(5)
    one = nm.prune(x, method="uniform")
    torch.manual_seed(5)
    assert torch.equal(one, nm.prune(x, method="uniform"))


def test_thresholds_and_probabilities():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0, 1.0]])  # blocks [1 2 3 4], [10 1 0 0]
    assert nm.block_threshold(x).tolist() == [[5.0, 1.0]]
    assert nm.block_threshold(x.T, dim=0).tolist() == [[5.0], [1.0]]
    expected = torch.tensor([[0.2, 0.4, 0.6, 0.8, 1.0, 1.0]])
    torch.testing.assert_close(nm.inclusion_probability(x), expected)
    p = nm.inclusion_probability(x.to(torch.bfloat16), method="mse")
    assert p.dtype == torch.float32
    assert p.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert nm.inclusion_probability(torch.zeros(0, 4)).shape == (0, 4)
    assert nm.block_threshold(torch.zeros(3, 0)).shape == (3, 0)


def test_the_result_carries_no_gradient():
    assert not nm.prune(torch.randn(4, 4, requires_grad=True)).requires_grad


NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize("function", [nm.prune, nm.keep_mask, nm.compress])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(4, dtype=torch.int64)}, TypeError, "dtype torch.int64"),
        ({"x": torch.tensor(1.0)}, IndexError, "without dimensions"),
        ({"dim": 2}, IndexError, "dimension 2 of a tensor with 2 dimensions"),
        ({"dim": (0, -2)}, ValueError, "different dimensions"),
        ({"dim": ()}, ValueError, "one or more"),
        ({"format": "5:4"}, FormatError, "5:4 is not"),
        ({"format": "1:2", "method": "approx-mvue"}, FormatError, "2:4 alone"),
        ({"format": "2:8", "method": "transposable"}, FormatError, "m = 2 and m = 4"),
        ({"dim": 0, "method": "transposable"}, ValueError, "two dimensions"),
        ({"method": "mvu"}, ValueError, "did you mean 'mvue'"),
        ({"generator": torch.Generator()}, ValueError, "leave out the generator"),
        ({"generator": 3}, ArgumentError, r"write torch.Generator\(\).manual_seed\(3\)"),
        ({"x": [1.0, 2.0]}, ArgumentError, r"write torch.tensor\(...\) of \[1.0, 2.0\]"),
        ({"x": None}, ArgumentError, "masks are of tensors"),
        ({"x": torch.eye(4).to_sparse()}, ArgumentError, r"x.to_dense\(\), this one is sparse_coo"),
        ({"x": torch.eye(4).to_sparse_csr()}, ArgumentError, "this one is sparse_csr"),
        ({"x": NESTED}, ArgumentError, "to_padded_tensor"),
        ({"dim": None}, ArgumentError, "dim = None: write the number of a dimension"),
        ({"dim": "1"}, ArgumentError, "dim = '1': write"),
        ({"dim": 1.0}, ArgumentError, "dim = 1.0: write"),
        ({"dim": (0, None)}, ArgumentError, r"dim = \(0, None\): write"),
        ({"dim": torch.tensor(0.5)}, ArgumentError, r"dim = tensor\(0.5000\): write"),
        ({"dim": True}, ArgumentError, "dim = True: write"),
        ({"dim": 10**5000}, IndexError, "does not exist"),
        ({"format": None}, FormatError, "None is not an N:M format: write two integers"),
        ({"format": (2.0, 4.0)}, FormatError, "write two integers"),
        ({"format": "1" * 5000 + ":4"}, FormatError, "write two integers"),
        ({"method": None}, ValueError, "None is not a pruning method: known: approx-mvue"),
        ({"method": "topk"}, ValueError, "did you mean 'mse'"),
        ({"method": ["mse"]}, ValueError, "is not a pruning method"),
    ],
)
def test_messages(function, arguments, error, message):
    if function is nm.compress and {"format", "method"} & arguments.keys():
        message = "."  # it takes fewer of them, and says so in its own words
    with pytest.raises(error, match=message):
        function(**({"x": torch.ones(4, 4)} | arguments))


@pytest.mark.parametrize("dim", [0, torch.tensor(0), (0,), [0]])
def test_whatever_counts_as_an_index_is_one(dim):
    x = torch.randn(8, 4)
    assert torch.equal(nm.prune(x, dim=dim), nm.prune(x, dim=0))


# Groups


def test_blocks_of_groups_start_anew_at_every_offset():
    x, offsets = torch.randn(12, 7), torch.tensor([3, 3, 9])
    for masked in (nm.prune, nm.keep_mask):
        expected = torch.cat([masked(group, dim=0) for group in (x[:3], x[3:9], x[9:])])
        assert torch.equal(masked(x, dim=0, offsets=offsets), expected)

    def draw(masked, offsets):
        generator = torch.Generator().manual_seed(1)
        return masked(x, dim=0, method="mvue", generator=generator, offsets=offsets)

    pruned = draw(nm.prune, offsets)
    assert torch.equal(pruned, draw(nm.prune, offsets.int()))
    assert torch.equal(pruned != 0, draw(nm.keep_mask, offsets))


def test_offsets_that_say_nothing():
    x = torch.randn(8, 8)
    for keys in ({"dim": (0, 1)}, {"method": "transposable"}):
        with pytest.raises(ValueError, match="name that dimension alone"):
            nm.prune(x, offsets=torch.tensor([3]), **keys)
    with pytest.raises(TypeError, match=r"int32 or int64, .*, not 1 dimensions of float32"):
        nm.prune(x, dim=0, offsets=torch.tensor([3.0]))
    with pytest.raises(ArgumentError, match=r"write torch.tensor\(\[3, 8\]\)"):
        nm.prune(x, dim=0, offsets=[3, 8])

"""The N:M format: what it may be, how it is written, and which methods are random."""

from __future__ import annotations

import pytest

from nmcompile.errors import FormatError
from nmcompile.masks.formats import MAX_M, Method, NMFormat


@pytest.mark.parametrize("text", ["2:4", " 2 : 4 ", "2:4\n", NMFormat(2, 4)])
def test_a_format_is_read_however_it_is_spaced(text: str | NMFormat) -> None:
    assert NMFormat.parse(text) == NMFormat(2, 4)


@pytest.mark.parametrize("text", ["", "2", "2/4", "2:4:8", "a:b", "-2:4", "2.0:4", 24, None])
def test_what_is_no_pair_of_integers_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(FormatError, match=r'is not an N:M format: write two integers, such as "2'):
        NMFormat.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2), (2, MAX_M + 1), (0, 0)])
def test_a_format_that_no_mask_has_is_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"{n}:{m} is not an N:M format: 1 <= N <= M <= {MAX_M}"):
        NMFormat(n, m)


def test_it_is_written_as_it_is_read_and_knows_its_density() -> None:
    for m in (1, 2, 4, MAX_M):
        for n in range(1, m + 1):
            format = NMFormat(n, m)
            assert NMFormat.parse(str(format)) == format
            assert format.density == n / m


def test_a_method_is_its_word_and_three_draw_random_numbers() -> None:
    assert [str(m) for m in Method] == ["mse", "mvue", "approx-mvue", "uniform", "transposable"]
    assert [m for m in Method if m.random] == [Method.MVUE, Method.APPROX_MVUE, Method.UNIFORM]

"""A reason is a code to filter by and a sentence to read."""

from __future__ import annotations

import re

from nmcompile.reason import Code, Reason, sentence


def test_codes_are_words_that_differ() -> None:
    words = [str(code) for code in Code]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", word) for word in words)
    # A name and its word are the same, so that JSON and Python can be searched alike.
    assert all(code.name == code.value.upper().replace("-", "_") for code in Code)


def test_reasons_are_read_as_one_text() -> None:
    first = Reason(Code.DECLINED, "execution = sparse, fallback = dense")
    second = Reason(Code.NO_GAIN, "no gain")
    assert str(first) == first.text
    assert sentence([first, second]) == "execution = sparse, fallback = dense; no gain"
    assert sentence([]) == ""


def test_reasons_are_equal_by_code_and_text() -> None:
    assert Reason(Code.NO_GAIN, "a") == Reason(Code.NO_GAIN, "a")
    assert len({Reason(Code.NO_GAIN, "a"), Reason(Code.GAIN, "a"), Reason(Code.GAIN, "b")}) == 3

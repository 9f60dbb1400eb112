"""Patterns: what they match, that they never take long, and what is refused with which words."""

from __future__ import annotations

import re
import time

import pytest

from nmcompile.policy.pattern import MAX_LENGTH, matcher, matching


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("*.mlp.*", ["a.mlp.b", ".mlp."], ["mlp.b", "a.MLP.b"]),
        ("a", ["a"], ["a.b", "A", ""]),
        ("", [""], ["a"]),
        ("a[0-2]?", ["a1x", "a0\n"], ["a3x", "a1"]),
        ("a[!0]", ["a1"], ["a0"]),
        ("a[[]0]", ["a[0]"], ["a0"]),
        (r"re:layers\.\d+", ["layers.12"], ["layers.12.fc", "xlayers.1"]),
        ("re:a|b", ["a", "b"], ["ab"]),
        ("re:", [""], ["a"]),
        ("re:é.", ["éü"], ["é"]),
        ("re:a.*", ["a\udc80"], ["\udc80"]),
        ("re:(?i)fc", ["FC"], ["fd"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, hits: list[str], misses: list[str]) -> None:
    assert matching(pattern, hits + misses) == hits


@pytest.mark.parametrize(
    "pattern",
    [
        "re:(a+)+b",
        "re:(a|a)*b",
        "re:(a*)*(a*)*(a*)*b",
        "re:(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)[^a]",
        "*a" * (MAX_LENGTH // 2),
        "*a" * 20 + "b",
        "[a-z]" * (MAX_LENGTH // 5),
    ],
    ids=lambda pattern: pattern[:20],
)
def test_no_pattern_takes_long(pattern: str) -> None:
    start = time.perf_counter()
    matching(pattern, ["a" * n for n in (40, 400, 4000)])
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("(?!a).*", "it looks ahead or behind"),
        ("(?<=a)b", "write the exception as a rule above this one"),
        (r"(a)\1", "it refers back to a group"),
        ("(?P<n>a)(?P=n)", "write out what is to be repeated"),
        ("(a)?(?(1)b|c)", "write both cases out"),
        ("(?>a)b", "it is possessive"),
        ("a++b", "it is possessive"),
        ("a(?#why)", "it holds a comment"),
        ("(?x)a", "it holds a comment"),
        (r"a\Z", "leave it out: the whole name must match"),
        ("a{1,2000}", "it repeats more than 1,000 times, "),
        ("(a", "missing )"),
        ("*", "no argument for repetition operator: *"),
        ("((a{100}){100}){100}", "(the syntax is that of RE2"),
        ("\udc80", "surrogates not allowed"),
    ],
)
def test_what_is_refused_of_a_regular_expression(expression: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        matcher(f"re:{expression}")
    assert str(caught.value).startswith(f"invalid regular expression {expression!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["", "re:"])
def test_a_pattern_that_is_too_long_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match=r"10,000,00\d characters: at most 4,096 are read"):
        matcher(head + "a" * 10_000_000)

"""One class per cause, errors that name the part that failed, and the nearest valid word."""

from __future__ import annotations

import pytest

from nmcompile import errors
from nmcompile.errors import (
    ArgumentError,
    ExportError,
    FormatError,
    MaskError,
    NMError,
    NMWarning,
    OptionError,
    PolicyError,
    ScheduleError,
    nearest,
    owned,
    shown,
)


@pytest.mark.parametrize("error", [FormatError, OptionError, PolicyError])
def test_an_error_is_caught_as_ours_and_as_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, NMError)
    assert issubclass(error, ValueError)


def test_every_class_says_what_its_cause_is() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type)]
    classes = [c for c in found if issubclass(c, (NMError, NMWarning))]
    known = {
        ArgumentError,
        ExportError,
        FormatError,
        MaskError,
        NMError,
        NMWarning,
        OptionError,
        PolicyError,
        ScheduleError,
    }
    assert set(classes) == known
    assert all("__doc__" in vars(c) and c.__doc__ for c in classes)


def test_a_foreign_error_becomes_one_that_names_the_part() -> None:
    with pytest.raises(NMError) as caught, owned("pass find"):
        raise KeyError("val")
    assert str(caught.value).startswith("pass find failed on this graph: KeyError: 'val'. ")
    assert "report it" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "error", [PolicyError("a rule"), NMError("ours"), NMWarning("as an error"), KeyboardInterrupt()]
)
def test_our_own_errors_and_interrupts_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, owned("a part"):
        raise error
    assert caught.value is error


def test_nothing_happens_where_nothing_fails() -> None:
    with owned("a part"):
        result = 3
    assert result == 3


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("fprob", "did you mean 'fprop'?"),
        ("fprop", "did you mean 'fprop'?"),
        ("xyz", "known: dgrad, fprop, wgrad"),
        ("", "known: dgrad, fprop, wgrad"),
    ],
)
def test_the_nearest_word_or_all_of_them(word: str, fragment: str) -> None:
    assert nearest(word, ["wgrad", "fprop", "dgrad", "fprop"]) == fragment


def test_of_many_words_some_are_listed_and_the_rest_counted() -> None:
    paths = [f"layers.{i:03}" for i in range(300)]
    assert nearest("head", paths) == f"known: {', '.join(paths[:20])}, and 280 more"
    assert nearest("head", []) == "known: "


def test_words_that_are_compared_may_be_long() -> None:
    assert nearest("x" * 10_000_000, ["fprop"]) == "known: fprop"


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


def test_any_value_can_be_shown() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown("a\nb") == "'a\\nb'"
    assert shown([1, 2]) == "[1, 2]"
    assert shown(10**5000) == "an int that is too long to show"
    assert shown(Rude()) == "a Rude that cannot be shown"
    assert shown(nested) == "a list that cannot be shown"
    assert shown("x" * 10_000_000) == f"'{'x' * 189}[...]xxxx'"
    assert "\n" not in shown(Lines())
    while nested:  # 100,000 nested lists are too deep to be freed at once
        (nested,) = nested or [[]]


class Lines:
    def __repr__(self) -> str:
        return "a\nb"

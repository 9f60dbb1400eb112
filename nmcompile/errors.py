"""Every error and warning of the package, one class per cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class NMError(Exception):
    """Base class of the package's errors."""


class NMWarning(UserWarning):
    """Base class of the package's warnings."""


class FormatError(NMError, ValueError):
    """Not an N:M format, or one that the method or the shape cannot have."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a policy: what to write instead, and where it stands as far as that is known.

    ``key`` is as in the file, ``rule``, ``line`` and ``column`` are counted from 1.
    """

    text: str
    key: str | None = None
    rule: int | None = None
    line: int | None = None
    column: int | None = None


class PolicyError(NMError, ValueError):
    """A policy that cannot be read or honoured; the message names the file and the rule.

    ``problems`` has every mistake on its own.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (Problem(message),)


class ArgumentError(NMError, TypeError):
    """An argument of a public function that is no such thing; the message says what to write."""


class OptionError(NMError, ValueError):
    """An option of the backend that does not exist or has the wrong type."""


class ExportError(NMError, ValueError):
    """A model whose weights cannot be exported, or a file that cannot be written."""


class ScheduleError(NMError, ValueError):
    """Phases that are no schedule, a checkpoint of another one, or ranks at different steps."""


class MaskError(NMError, ValueError):
    """A checkpoint of masks that is none, or of another model."""


@contextmanager
def owned(part: str) -> Iterator[None]:
    """Turn any other error of a part of the package into one that names it.

    Dynamo would take some of PyTorch's errors for its own and run the model eagerly, in silence.
    """
    try:
        yield
    except (NMError, NMWarning):
        raise
    except Exception as error:
        raise NMError(
            f"{part} failed on this graph: {type(error).__name__}: {error}. "
            "This is a mistake of nmcompile: please report it with the model and the policy"
        ) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence fragment with the nearest valid word, or with all of them when none is near."""
    words = sorted(set(known))
    close = difflib.get_close_matches(word[:_LONG], words, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(first(words))}"


def first(texts: Sequence[str], what: str = "") -> list[str]:
    """The first of many texts, and how many more there are (of ``what``)."""
    more = len(texts) - _MOST
    return [*texts[:_MOST], *([f"and {more:,} more{what}"] if more > 0 else [])]


def shown(value: object) -> str:
    """``repr`` of any value for a message: on one line, cut where it is long, never an error."""
    try:
        text = repr(value)
    except Exception as error:  # whatever a user's own class raises
        if isinstance(value, int) and isinstance(error, ValueError):
            return "an int that is too long to show"  # of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be shown"
    return shorten(text)


def shorten(text: str) -> str:
    """A text on one line, without its middle if it is long."""
    line = " ".join(text[: 10 * _LONG].split("\n"))
    if len(text) <= _LONG:
        return line
    return f"{line[: _LONG - 10]}[...]{text[-5:]}"


#: A large model has hundreds of paths.
_MOST = 20
#: Values in messages are no longer; nor are words that are compared with known ones.
_LONG = 200

"""Every error and warning of the package, one class per cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
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


class OptionError(NMError, ValueError):
    """An option of the backend that does not exist or has the wrong type."""


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
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = [f"and {len(words) - _MOST} more"] if len(words) > _MOST else []
    return f"known: {', '.join(words[:_MOST] + more)}"


#: A large model has hundreds of paths.
_MOST = 20

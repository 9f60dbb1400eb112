"""Patterns on names: globs, and ``re:`` regular expressions, which match in linear time.

A policy from a stranger may not hang a compilation, so a regular expression runs on RE2, whose time
is linear in the name whatever the expression; what RE2 leaves out for that is refused by name. A
glob commits to the first place where what follows each ``*`` fits, and never goes back.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable

#: Longer ones are refused: they take long to compile, and nobody has written them by hand.
MAX_LENGTH = 4096


@functools.lru_cache(maxsize=65536)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a whole name matches: a glob, or ``"re:"`` and a regular expression.

    Raises:
        ValueError: what is wrong with the pattern, and what to write instead.
    """
    if len(pattern) > MAX_LENGTH:
        raise ValueError(
            f"a pattern of {len(pattern):,} characters: at most {MAX_LENGTH:,} are read; write "
            "several rules"
        )
    if pattern.startswith("re:"):
        return _regular_expression(pattern[3:])
    if not re.search(r"[*?\[]", pattern):
        return pattern.__eq__
    matches = re.compile(fnmatch.translate(pattern)).match
    return lambda name: matches(name) is not None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match. Raises ``ValueError`` as ``matcher`` does."""
    return list(filter(matcher(pattern), names))


def _regular_expression(expression: str) -> Callable[[str], bool]:
    try:
        import re2  # only where a rule needs it
    except ImportError as error:
        raise ValueError("a regular expression needs the package google-re2: install it") from error
    options = re2.Options()
    options.log_errors = False  # they are raised as well
    try:
        compiled = re2.compile(expression, options)
    except UnicodeEncodeError as error:
        raise ValueError(f"invalid regular expression {expression!r}: {error}") from error
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(_refusal(expression, text)) from error

    def matches(name: str) -> bool:
        # A lone surrogate is no text to RE2.
        return compiled.fullmatch(name.encode(errors="replace").decode()) is not None

    return matches


#: What RE2 does not have, as Python writes it, and what to write instead.
_NOT_LINEAR = (
    (r"\(\?<?[=!]", "looks ahead or behind", "write the exception as a rule above this one"),
    (r"\\[1-9]|\(\?P=", "refers back to a group", "write out what is to be repeated"),
    (r"\(\?\(", "depends on a group", "write both cases out, with | between them"),
    (r"\(\?>|[*+?}]\+", "is possessive", "leave that out: nothing is tried twice anyway"),
    (r"\(\?#|\(\?[a-zA-Z]*x", "holds a comment", "write the comment behind a # of the file"),
    (r"\\Z", r"holds \Z", "leave it out: the whole name must match"),
    (r"\{\d{4,}|\{\d+,\d{4,}", "repeats more than 1,000 times", "write + or *"),
)


def _refusal(expression: str, said: str) -> str:
    head = f"invalid regular expression {expression!r}"
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError):
        return f"{head}: {said}"
    for construct, does, instead in _NOT_LINEAR:
        if re.search(construct, expression):
            return f"{head}: it {does}, which RE2 leaves out to stay linear: {instead}"
    return f"{head}: {said} (the syntax is that of RE2, which matches in linear time)"

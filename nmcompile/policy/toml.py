"""The text of policy files and built-in recipes, and what TOML makes of it.

What the keys mean is in ``policy`` and ``rule``; this file knows only where text comes from and on
which line a rule stands.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from nmcompile.errors import PolicyError, Problem, nearest, shown

RECIPES = (
    "dense",
    "activations",
    "gradients",
    "full",
    "full-exact",
    "weights",
    "paper-1:2",
    "mse-gradients",
)

_HEADER = re.compile(r"\s*\[")
#: Of a file: a thousand rules written by hand have a tenth of them.
MAX_BYTES = 1_000_000

_RULE_HEADER = re.compile(r"""\s*\[\[\s*(rule|"rule"|'rule')\s*\]\]""")


@dataclass(frozen=True)
class Source:
    """Where a rule was written. Any two are equal: rules are compared by content alone.

    ``recipe`` is the built-in recipe that it is of; ``origin`` then says so in words.
    """

    origin: str = field(default="<python>", compare=False)
    number: int | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)
    recipe: str | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """Such as ``"policy.toml:12 (rule 2)"``."""
        if self.number is None:
            return self.origin
        if self.line is None:
            return f"{self.origin}, rule {self.number}"
        return f"{self.origin}:{self.line} (rule {self.number})"


def recipe_names() -> tuple[str, ...]:
    """The names of the built-in recipes."""
    return RECIPES


def recipe_text(name: str) -> str:
    """The TOML source of a built-in recipe. Raises ``PolicyError`` for an unknown name."""
    if name not in RECIPES:
        raise PolicyError(
            f"recipe {shown(name)} does not exist: {nearest(str(name).lower(), RECIPES)}"
        )
    # A colon is not legal in a file name everywhere.
    file = resources.files("nmcompile.policy") / "recipes" / f"{name.replace(':', '-')}.toml"
    return file.read_text(encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a policy file. Raises ``PolicyError`` if it is no readable UTF-8 file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise PolicyError(f"{path}: no policy: at most {MAX_BYTES:,} bytes of a file are read")
        return content.decode("utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise PolicyError(f"{path}: no such policy file (in {Path.cwd()})") from error
    except IsADirectoryError as error:
        raise PolicyError(f"{path}: is a directory; name a policy file in it") from error
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"{path}: not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise PolicyError(f"{str(path)!r}: not a path: {error}") from error


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The table that ``text`` holds. Raises ``PolicyError`` with TOML's own line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        text = f'not valid TOML: {error}; words and formats need quotes, such as format = "2:4"'
        place = re.search(r"line (\d+), column (\d+)", str(error))
        numbers = map(int, place.groups()) if place else ()
        problem = Problem(text, None, None, *numbers)
        raise PolicyError(f"{origin}: {text}", [problem]) from error
    except RecursionError as error:
        raise PolicyError(f"{origin}: not a policy: values nested too deeply") from error
    except ValueError as error:  # int() of thousands of digits
        raise PolicyError(f"{origin}: not a policy: a number is too long: {error}") from error


def rule_lines(text: str, count: int) -> tuple[int | None, ...]:
    """The 1-based line of each of the ``count`` ``[[rule]]`` headers.

    ``tomllib`` keeps no positions, so headers are found by their look. Where that disagrees with
    the count (rules written inline, a header inside a string), no line is better than a wrong one.
    """
    # TOML ends a line at "\n" alone; str.splitlines would also split at "\u2028" and others.
    lines = [i for i, line in enumerate(text.split("\n"), 1) if _RULE_HEADER.match(line)]
    return tuple(lines) if len(lines) == count else (None,) * count


def locate(problem: Problem, text: str, header: int | None) -> Problem:
    """The problem with the line and column of its key, below the line ``header``.

    Where the key is not found there (it is missing, or a table is written inline), with the line of
    the rule's header.
    """
    lines = text.split("\n")
    start = header or 0
    key = re.compile(rf"""\s*(?P<key>["']?{re.escape(problem.key or "")}["']?)\s*=""")
    for number, line in enumerate(lines[start:], start + 1):
        if _HEADER.match(line):
            break
        if problem.key and (found := key.match(line)):
            return replace(problem, line=number, column=found.start("key") + 1)
    return replace(problem, line=header, column=1 if header else None)

"""Reads policy files and built-in recipes, and words what is wrong with one.

What the keys mean is in ``policy``; this file knows only their names and their valid words.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from nmcompile.errors import PolicyError, nearest
from nmcompile.gemm import Op, OperandKind, Role
from nmcompile.masks.formats import Method

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

DType = Literal["float16", "bfloat16", "float32", "float64"]
Execution = Literal["simulate", "sparse", "auto"]
Fallback = Literal["dense", "simulate", "error"]
Backward = Literal["straight-through", "exact"]

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

#: The keys above the first ``[[rule]]``.
FILE_KEYS = ("schema", "extends", "execution", "fallback", "margin", "rule")

#: The keys of a rule whose values are words, and the words.
WORDS: dict[str, tuple[str, ...]] = {
    "op": tuple(map(str, Op)),
    "role": tuple(map(str, Role)),
    "dtype": get_args(DType),
    "prune": tuple(map(str, OperandKind)),
    "method": tuple(map(str, Method)),
    "backward": get_args(Backward),
    "execution": get_args(Execution),
    "fallback": get_args(Fallback),
}
LISTS = ("op", "role", "dtype")

#: What the value of every other key must be.
EXPECTED = {
    "module": 'a glob in quotes, such as "*.mlp.*", or "re:" and a regular expression',
    "class": 'a glob on a class name in quotes, such as "Linear"',
    "min_flops": "a finite number of FLOPs, zero or more, such as 1e9",
    "format": 'an N:M format in quotes, such as "2:4"',
    "dense": "true or false, without quotes",
    "margin": "the least gain for which a product runs sparse, such as 1.05",
    "extends": "the name of a built-in recipe in quotes",
    "schema": "1",
    "rule": "rules, each below a [[rule]] header (in Python: Rule objects or mappings)",
}
#: Fields whose names in Python differ from their keys in TOML.
TOML_KEYS: dict[object, str] = {"class_": "class", "schema_": "schema", "rules": "rule"}
RULE_KEYS = tuple(key for key in (*WORDS, *EXPECTED) if key not in FILE_KEYS or key in WORDS)

_RULE_HEADER = re.compile(r"""\s*\[\[\s*(rule|"rule"|'rule')\s*\]\]""")


def recipe_names() -> tuple[str, ...]:
    """The names of the built-in recipes."""
    return RECIPES


def recipe_text(name: str) -> str:
    """The TOML source of a built-in recipe. Raises ``PolicyError`` for an unknown name."""
    if name not in RECIPES:
        raise PolicyError(f"recipe {name!r} does not exist: {nearest(name.lower(), RECIPES)}")
    # A colon is not legal in a file name everywhere.
    file = resources.files("nmcompile.policy") / "recipes" / f"{name.replace(':', '-')}.toml"
    return file.read_text(encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a policy file. Raises ``PolicyError`` if it is no readable UTF-8 file."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark
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
        raise PolicyError(
            f"{origin}: not valid TOML: {error}; words and formats need quotes, "
            'such as format = "2:4"'
        ) from error
    except RecursionError as error:
        raise PolicyError(f"{origin}: not a policy: values nested too deeply") from error


def rule_lines(text: str, count: int) -> tuple[int | None, ...]:
    """The 1-based line of each of the ``count`` ``[[rule]]`` headers.

    ``tomllib`` keeps no positions, so headers are found by their look. Where that disagrees with
    the count (rules written inline, a header inside a string), no line is better than a wrong one.
    """
    # TOML ends a line at "\n" alone; str.splitlines would also split at "\u2028" and others.
    lines = [i for i, line in enumerate(text.split("\n"), 1) if _RULE_HEADER.match(line)]
    return tuple(lines) if len(lines) == count else (None,) * count


def file_problems(table: Mapping[Any, object]) -> Iterable[str]:
    """One line for each problem of the top level that needs no knowledge of the rules."""
    for key in table:
        if key not in FILE_KEYS:
            yield _unknown_key(str(key), in_rule=False)
    rules = table.get("rule", [])
    if isinstance(rules, Mapping):
        yield "[rule] is a single table: write [[rule]], with two brackets, above every rule"
    elif not isinstance(rules, (list, tuple)):
        yield _wrong_value("rule", rules)


def schema_problem(table: Mapping[Any, object]) -> str | None:
    """A line if the schema's version is missing or not 1."""
    if "schema" not in table:
        return "schema is missing: write schema = 1 on the first line"
    version = table["schema"]
    if type(version) is not int or version != 1:  # True == 1
        return f"schema = {_show(version)}: this nmcompile reads schema 1; write schema = 1"
    return None


def problems(error: ValidationError) -> list[str]:
    """One line for each problem of a rule or a policy: its key, its value, what to write."""
    in_rule = error.title == "Rule"
    return [line for details in error.errors() for line in _lines(details, in_rule)]


def _lines(details: ErrorDetails, in_rule: bool) -> list[str]:
    key, *place = details["loc"]
    if details["type"] == "extra_forbidden":
        return [_unknown_key(str(key), in_rule)]
    key = TOML_KEYS.get(key, str(key))
    own = details["type"] == "value_error"  # one of the package's checks, already worded
    worded = str(details["ctx"]["error"]) if own else _wrong_value(key, details["input"])
    if key == "rule" and place:  # a rule inside a policy, with a line for each problem
        return [f"rule {int(place[0]) + 1}: {line}" for line in worded.split("\n")]
    return [f"{key}: {worded}" if own else worded]


def _unknown_key(key: str, in_rule: bool) -> str:
    own, other = (RULE_KEYS, FILE_KEYS) if in_rule else (FILE_KEYS, RULE_KEYS)
    if key in other:
        place = "above the first [[rule]]" if in_rule else "below a [[rule]]"
        return f"key {_show(key)} is in the wrong place: move it {place}"
    return f"unknown key {_show(key)}: {nearest(key.lower(), own)}"


def _wrong_value(key: str, value: object) -> str:
    if key in WORDS:
        if isinstance(value, str):
            # Lower case, so that "MVUE" is near to "mvue".
            return f"{key} = {_show(value)}: {nearest(value.lower(), WORDS[key])}"
        words = ", ".join(f'"{word}"' for word in WORDS[key])
        many = " or a list of them" if key in LISTS else ""
        return f"{key} = {_show(value)}: write one of {words}{many}"
    return f"{key} = {_show(value)}: write {EXPECTED[key]}"


def _show(value: object) -> str:
    """A value as TOML writes it, on one line."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)

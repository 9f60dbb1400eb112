"""What the tables of a policy file have in common: strict keys, and errors that say what to write.

A key is declared once, as a field of its table (``Policy`` or ``Rule``). From the field come its
name in the file, the words that it may be and, as ``description``, what to write where it is not
a choice of words.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from enum import EnumType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from nmcompile.errors import PolicyError, Problem, first, shorten, shown
from nmcompile.policy.words import meant, meant_key

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class PolicyModel(BaseModel):
    """Frozen and strict about its keys; raises ``PolicyError`` with a line for every problem."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True
    )
    #: Where the keys of this table stand in a file.
    _place: ClassVar[str]

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            found = [p for details in error.errors() for p in _problems(type(self), details)]
            lines = first([p.text for p in found], " problems")
            raise PolicyError("\n".join(lines), found) from error


@dataclass(frozen=True)
class Key:
    """What the value of a key must be.

    ``words`` are the valid ones, none where it is no choice of words; ``many``: a list of them will
    do as well. ``expected`` says what to write instead of a word.
    """

    words: tuple[str, ...]
    many: bool
    expected: str | None


@functools.cache
def keys_of(table: type[PolicyModel]) -> dict[str, Key]:
    """Every key of a table by its name in the file, as the fields declare them."""
    return {
        field.alias or name: Key(
            _words(field.annotation), _takes_many(field.annotation), field.description
        )
        for name, field in table.model_fields.items()
    }


def unknown_key(table: type[PolicyModel], key: str) -> str:
    """A line about a key that the table does not have, but perhaps another one."""
    for other in PolicyModel.__subclasses__():
        if key in keys_of(other):
            return f"key {show(key)} is in the wrong place: move it {other._place}"
    return f"unknown key {show(key)}: {meant_key(key, keys_of(table))}"


def wrong_value(table: type[PolicyModel], key: str, value: object) -> str:
    """A line about a value that the key cannot have, with what to write."""
    known = keys_of(table)[key]
    if not known.words:
        return f"{key} = {show(value)}: write {known.expected}"
    if isinstance(value, str):
        return f"{key} = {show(value)}: {meant(key, value, known.words)}"
    words = ", ".join(f'"{word}"' for word in known.words)
    many = " or a list of them" if known.many else ""
    return f"{key} = {show(value)}: write one of {words}{many}"


def show(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, (str, bool)):
        return shorten(json.dumps(value, ensure_ascii=False))
    return shown(value)


def _problems(table: type[PolicyModel], details: ErrorDetails) -> list[Problem]:
    name, *place = details["loc"]
    if details["type"] == "extra_forbidden":
        return [Problem(unknown_key(table, str(name)), str(name))]
    field = table.model_fields.get(str(name))  # of the name in Python or in TOML
    key = field.alias if field and field.alias else str(name)
    own = details["type"] == "value_error"  # one of the package's checks, already worded
    worded = str(details["ctx"]["error"]) if own else wrong_value(table, key, details["input"])
    if key == "rule" and place:  # a rule inside a policy, with a line for each problem
        number = int(place[0]) + 1
        return [Problem(f"rule {number}: {line}", None, number) for line in worded.split("\n")]
    return [Problem(f"{key}: {worded}" if own else worded, key)]


def _words(annotation: object) -> tuple[str, ...]:
    if isinstance(annotation, EnumType):
        return tuple(map(str, annotation))
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return tuple(part for part in parts if isinstance(part, str))
    return tuple(word for part in parts for word in _words(part))


def _takes_many(annotation: object) -> bool:
    return get_origin(annotation) is tuple or any(map(_takes_many, get_args(annotation)))

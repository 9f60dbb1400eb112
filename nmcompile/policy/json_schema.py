"""The JSON Schema of a policy file: what it accepts, the reader accepts, and the other way round.

Pydantic writes the keys, their types and words; here is what the reader checks besides: one word
in place of a list, formats, limits, and which keys go together. One thing no schema can say: that
a regular expression is one that RE2 takes.
"""

from __future__ import annotations

import sys
from typing import Any

from nmcompile.gemm import KINDS_OF_ROLE, OperandKind, Role
from nmcompile.masks.formats import MAX_M, Method
from nmcompile.policy.pattern import MAX_LENGTH

Schema = dict[str, Any]
#: Keys that mean nothing in a rule with ``dense = true``.
_OF_PRUNING = ("prune", "format", "method", "refresh", "decay", "execution", "fallback")
_NULL = {"type": "null"}


def complete_rule(schema: Schema) -> None:
    """Add to a rule's schema what its checks say."""
    keys = schema["properties"]
    for key in ("op", "role", "dtype"):
        words = keys[key]["anyOf"][0]
        words["minItems"] = 1
        keys[key]["anyOf"].insert(0, words["items"])
    for key in ("module", "class"):
        keys[key]["anyOf"][0]["maxLength"] = MAX_LENGTH
    keys["min_flops"]["anyOf"][0]["maximum"] = sys.float_info.max
    keys["decay"]["anyOf"][0]["maximum"] = sys.float_info.max
    keys["format"]["anyOf"][0] = {"type": "string", "pattern": _formats(range(1, MAX_M + 1))}
    schema["allOf"] = [
        {
            "if": _has(dense=True),
            "then": {
                "properties": {
                    **dict.fromkeys(_OF_PRUNING, _NULL),
                    "backward": {"const": "straight-through"},
                }
            },
            "else": {
                "required": ["prune", "format"],
                "properties": {key: {"not": _NULL} for key in ("prune", "format")},
            },
        },
        *(_roles(kind) for kind in OperandKind),
        *(_of_weights(key) for key in ("refresh", "decay")),
        {
            "if": _given("decay"),
            "then": {"properties": {"role": {"anyOf": [_NULL, _one_is(str(Role.FPROP))]}}},
        },
        _method("approx-mvue", format={"pattern": _formats([4], n=2)}),
        _method(
            "transposable",
            prune={"const": str(OperandKind.WEIGHT)},
            format={"pattern": _formats([2, 4])},
        ),
        {
            "if": _has(backward="exact"),
            "then": {
                "required": ["role"],
                "properties": {
                    "role": _all_of([str(Role.FPROP)]),
                    "method": {"enum": [None, "mse", "transposable"]},
                },
            },
        },
    ]


def complete_policy(schema: Schema, recipes: tuple[str, ...], rules: int) -> None:
    """Add to a policy's schema the recipes, the greatest number of rules and what a file needs."""
    keys = schema["properties"]
    keys["extends"]["anyOf"][0]["enum"] = list(recipes)
    keys["rule"]["maxItems"] = rules
    keys["margin"]["maximum"] = sys.float_info.max
    keys["decay"]["anyOf"][0]["maximum"] = sys.float_info.max
    schema["required"] = ["schema"]


def _has(**values: object) -> Schema:
    consts = {key: {"const": value} for key, value in values.items()}
    return {"required": list(values), "properties": consts}


def _given(key: str) -> Schema:
    return {"required": [key], "properties": {key: {"not": _NULL}}}


def _of_weights(key: str) -> Schema:
    """A key that means something for the mask of a weight that can be kept."""
    methods = [None, *(str(m) for m in Method if not m.random)]
    needs = {"prune": {"const": str(OperandKind.WEIGHT)}, "method": {"enum": methods}}
    return {"if": _given(key), "then": {"properties": needs}}


def _method(method: str, **needs: Schema) -> Schema:
    return {"if": _has(method=method), "then": {"properties": needs}}


def _roles(kind: OperandKind) -> Schema:
    """A rule that prunes this operand names roles that have it, or none."""
    roles = [str(role) for role in Role if kind in KINDS_OF_ROLE[role]]
    either = {"anyOf": [_NULL, _all_of(roles)]}
    return {"if": _has(prune=str(kind)), "then": {"properties": {"role": either}}}


def _all_of(words: list[str]) -> Schema:
    """One of the words, or a list of them."""
    return {"anyOf": [{"enum": words}, {"type": "array", "items": {"enum": words}}]}


def _one_is(word: str) -> Schema:
    """The word, or a list that has it."""
    return {"anyOf": [{"const": word}, {"type": "array", "contains": {"const": word}}]}


def _formats(ms: range | list[int], n: int | None = None) -> str:
    """An expression for the formats with these M, and one N or all that they may have."""
    space = "[ \\t\\r\\n]*"
    each = (
        f"(?:{'|'.join(map(_number, [n] if n else range(1, m + 1)))}){space}:{space}{_number(m)}"
        for m in ms
    )
    return f"^{space}(?:{'|'.join(each)}){space}$"


def _number(value: int) -> str:
    """Leading zeros and all, nine digits at most."""
    return f"0{{0,{9 - len(str(value))}}}{value}"

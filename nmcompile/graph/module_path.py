"""The module that a node belongs to, as ``model.named_modules()`` would call it."""

from __future__ import annotations

import ast
import functools
import re
from typing import Any

from torch import fx

# Dynamo writes a source expression, "L['self'].layers.0.fc", of these parts:
#   a variable and what is taken out of it, which is none of the model's modules;
_ROOT = re.compile(r"[LG](?=\[)")
#   an attribute, as repr() writes its name, without quotes (there are none in it, nor an item);
_NAME = re.compile(r"""\.((?:(?!\[(?:\d+\]|['"]))[^.'"])*)""")
#   an item: "[0]", "['fc']", of "_modules" as well where the name holds quotes or brackets;
_ITEM = re.compile(r"""\[(\d+|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")
#   a call, in a functional call: "getattr(L['self'].layers, '0')".
_GETATTR = "getattr("
_END = re.compile(r"""(?:, )?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\)""")
#: Attributes that hold a module's children and parameters, and what leads there.
_TABLES = {"_modules", "_parameters", "_buffers", "__dict__"}


def module_path(node: fx.Node) -> tuple[str, str]:
    """(path, class name) of the innermost module; ("", "") for an operation outside of any."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    return path_of_stack(stack) if stack else ("", "")


def path_of_stack(stack: dict[str, Any]) -> tuple[str, str]:
    """The same of a stack of modules, as nodes carry it: it holds at least one."""
    path, cls = list(stack.values())[-1]
    name = cls if isinstance(cls, str) else getattr(cls, "__name__", str(cls))
    return normalise(path), name.rsplit(".", 1)[-1]


@functools.lru_cache(maxsize=65536)
def normalise(source: str) -> str:
    """Turn Dynamo's source expression into a dotted module path.

    What cannot be read stays as it is.
    """
    try:
        names, rest = _names(source)
    except (ValueError, SyntaxError, RecursionError):
        return source
    return source if rest else ".".join(names)


def _names(source: str) -> tuple[list[str], str]:
    """The names that an expression at the beginning of ``source`` goes through, and what follows.

    Names of the path alone: neither the variable that the model is in nor the tables of a module.
    """
    if source.startswith(_GETATTR):
        names, rest = _names(source[len(_GETATTR) :])
        end = _END.match(rest)
        if end is None:
            raise ValueError(source)
        return _steps([*names, ast.literal_eval(end[1])], rest[end.end() :])
    root = _ROOT.match(source)
    rest = source[root.end() :] if root else f".{source}"
    while root and (item := _ITEM.match(rest)):
        rest = rest[item.end() :]
    while root and (closed := _CLOSURE.match(rest)):
        rest = rest[closed.end() :]
    return _steps([], rest)


_CLOSURE = re.compile(r"\.__closure__\[\d+\]\.cell_contents")


def _steps(names: list[str], rest: str) -> tuple[list[str], str]:
    """Go on with attributes and items."""
    while rest:
        if item := _ITEM.match(rest):
            step, rest = str(ast.literal_eval(item[1])), rest[item.end() :]
        elif attribute := _NAME.match(rest):
            step, rest = attribute[1], rest[attribute.end() :]
            if rest[:1] in ("'", '"'):  # of a getattr: its comma looks like a part of the name
                step, rest = step.removesuffix(", "), f", {rest}"
            if "\\" in step:
                step = ast.literal_eval(f"'{step}'")
        else:
            break
        if step and step not in _TABLES:
            names.append(step)
    return names, rest

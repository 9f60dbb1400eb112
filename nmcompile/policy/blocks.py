"""Which repeated blocks of a model may share what is planned or compiled for one of them."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

from nmcompile.errors import OptionError, nearest
from nmcompile.policy.policy import Policy

if TYPE_CHECKING:
    from torch import nn  # a policy is read without PyTorch


def alike_blocks(model: nn.Module, each: str, policy: Policy) -> list[list[str]]:
    """Paths of the blocks that ``each`` names, those together that no rule tells apart.

    Args:
        model: the model.
        each: glob on ``model.named_modules()``, or ``"re:..."``, for outermost modules.
        policy: blocks of one class are alike if its rules name the same modules in them.

    Raises:
        OptionError: ``each`` matches no module.
    """
    alike: dict[Any, list[str]] = {}
    for path in _outermost(model, each):
        alike.setdefault(_signature(model, path, policy), []).append(path)
    return list(alike.values())


def _outermost(model: nn.Module, each: str) -> list[str]:
    pattern = each[3:] if each.startswith("re:") else fnmatch.translate(each)
    known = [path for path, _ in model.named_modules() if path]
    try:
        found = [path for path in known if re.fullmatch(pattern, path)]
    except re.error as error:
        raise OptionError(f"each = {each!r}: invalid regular expression: {error}") from error
    if not found:
        raise OptionError(f"each = {each!r} matches no module: {nearest(each, known)}")
    return [p for p in found if not any(p.startswith(f"{other}.") for other in found)]


def _signature(model: nn.Module, path: str, policy: Policy) -> Any:
    """Which rules name which modules of a block: blocks of one class with equal ones are alike."""
    block = model.get_submodule(path)
    inside = [(f"{path}.{name}" if name else path, name) for name, _ in block.named_modules()]
    rules = policy.all_rules
    return type(block), tuple(
        (name, tuple(rule.names_module(full) for rule in rules)) for full, name in inside
    )

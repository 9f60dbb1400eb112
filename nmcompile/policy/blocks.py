"""Which repeated blocks of a model may share what is planned or compiled for one of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from nmcompile.errors import ArgumentError, OptionError, nearest, shown
from nmcompile.policy.paths import named_modules
from nmcompile.policy.pattern import matching
from nmcompile.policy.policy import Policy

if TYPE_CHECKING:
    from torch import nn  # a policy is read without PyTorch


def alike_blocks(model: nn.Module, each: str, policy: Policy) -> list[dict[str, nn.Module]]:
    """The blocks that ``each`` names by their paths, those together that no rule tells apart.

    Args:
        model: the model.
        each: glob on ``model.named_modules()``, or ``"re:..."``, for outermost modules.
        policy: blocks of one class are alike if its rules name the same modules in them.

    Raises:
        ArgumentError: ``each`` is no text.
        OptionError: ``each`` is no pattern or matches no module.
    """
    alike: dict[Any, dict[str, nn.Module]] = {}
    for path, block in _outermost(model, each).items():
        alike.setdefault(_signature(path, block, policy), {})[path] = block
    return list(alike.values())


def _outermost(model: nn.Module, each: str) -> dict[str, nn.Module]:
    if not isinstance(each, str):
        raise ArgumentError(f'each = {shown(each)}: write a glob in quotes, such as "layers.*"')
    known = [(path, module) for _, path, module in named_modules(model) if path]
    paths = [path for path, _ in known]
    try:
        found = set(matching(each, paths))
    except ValueError as error:
        raise OptionError(f"each = {shown(each)}: {error}") from error
    if not found:
        raise OptionError(f"each = {shown(each)} matches no module: {nearest(each, paths)}")
    taken: dict[str, nn.Module] = {}
    for path, module in known:
        parents = itertools.accumulate(path.split(".")[:-1], "{}.{}".format)
        if path in found and found.isdisjoint(parents):
            taken.setdefault(path, module)  # of a wrapper and what it wraps, the wrapper
    return taken


def _signature(path: str, block: nn.Module, policy: Policy) -> Any:
    """Which rules name which modules of a block: blocks of one class with equal ones are alike."""
    inside = [(".".join(filter(None, (path, name))), name) for _, name, _ in named_modules(block)]
    rules = policy.all_rules
    return type(block), tuple(
        (name, tuple(rule.names_module(full) for rule in rules)) for full, name in inside
    )

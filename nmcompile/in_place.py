"""``nmcompile.compile``: compile a model in place, whole or block by block."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

from nmcompile._dynamo import compiled_function_is_skipped
from nmcompile.backend import nm_sparse
from nmcompile.errors import ArgumentError, OptionError, shown
from nmcompile.policy import Policy
from nmcompile.policy.blocks import alike_blocks

Model = TypeVar("Model", bound=nn.Module)


def compile(
    model: Model,
    policy: str | PathLike[str] | Policy | Mapping[str, Any] | None = None,
    *,
    each: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """Compile ``model`` in place with backend ``nm_sparse`` and return it.

    The same as ``model.compile(backend="nm_sparse", options={"policy": policy, ...})``: class,
    parameter names and checkpoints stay as they are, so that trainers which reject a backend that
    they do not know, or which wrap the model, need not be told. A wrong policy is an error here and
    not in the first step.

    With ``each``, repeated blocks are compiled one by one (regional compilation): they share code,
    which saves compile time, and rules still see full paths. Blocks that the policy treats
    differently get code of their own, so that rules on a layer's index hold.

    Args:
        model: any module; it is changed in place.
        policy: a recipe's name, a path, a ``Policy`` or a mapping; None means ``full``.
        each: glob on paths of ``model.named_modules()``, or ``"re:..."``: compile each outermost
            module that matches, instead of the whole model.
        dynamic, fullgraph: as in ``torch.compile``.
        options: further options of the backend and of Inductor; the policy may be one of them.

    Raises:
        ArgumentError: ``model`` is no module.
        PolicyError: the policy cannot be read.
        OptionError: ``each`` matches no module; a policy is given twice.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"nmcompile.compile changes a module in place, and {shown(model)} is none: compile "
            'anything else with torch.compile(..., backend="nm_sparse")'
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            "torch.compile leaves TorchScript alone: give the module that was scripted or traced"
        )
    given = dict(_options(options))
    if policy is not None and given.get("policy") is not None:
        raise OptionError(
            "a policy is given twice, as an argument and in options: leave out one of the two"
        )
    chosen = Policy.resolve(given.get("policy") if policy is None else policy)
    given["policy"] = chosen
    keys = {"backend": nm_sparse, "dynamic": dynamic, "fullgraph": fullgraph}
    if each is None:
        _in_place([model], {**keys, "options": given})
        return model
    for group in alike_blocks(model, each, chosen):
        shared = {**given, "nm.region": tuple(group)}
        _in_place(list(group.values()), {**keys, "options": shared})
    return model


def _options(options: object) -> Mapping[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(
            f'options = {shown(options)}: write a mapping, such as {{"nm.autotune": True}}'
        )
    return options or {}


def _in_place(modules: list[nn.Module], keys: dict[str, Any]) -> None:
    if not compiled_function_is_skipped(modules[0]):
        for module in modules:
            module.compile(**keys)
        return
    code = _call(modules[0]).__code__.replace(co_name=f"call_{next(_calls)}")
    for module in modules:
        call = _call(module)
        call.__code__ = code  # one code object: these modules share what is compiled for it
        module._compiled_call_impl = torch.compile(call, **keys)  # type: ignore[assignment]


def _call(module: nn.Module) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return call


_calls = itertools.count()

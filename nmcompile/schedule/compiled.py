"""The parts of a model that were compiled with this backend, by itself or by a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from nmcompile._dynamo import inside_wrappers, is_compiled_wrapper
from nmcompile.backend import report_of_call, wrapper_of
from nmcompile.policy.paths import named_modules
from nmcompile.report.report import Report
from nmcompile.schedule.schedule import Schedule, versions_of


def reports_of(model: nn.Module) -> Iterator[tuple[str, Report]]:
    """The report of each compiled part, and the path of the module that its names begin at.

    It is empty where the part has not run.
    """
    if is_compiled_wrapper(model):
        made = report_of_call(model.forward, inside_wrappers(model))
        if made is not None:
            yield "", made[0]
    inner = inside_wrappers(model)
    for _, path, module in named_modules(inner):
        call = module._compiled_call_impl
        if isinstance(owner := getattr(call, "__self__", None), Schedule):
            call = owner.compiled(module)
        made = report_of_call(call, module) if call is not None else None
        if made is None:
            continue
        report, region = made
        own = next((p for p in region if f".{path}".endswith(f".{p}")), "")
        yield path.removesuffix(own).rstrip("."), report


def wrappers_of(model: Any) -> list[Any]:
    """This backend with its options, once for each version of each part that was compiled.

    Args:
        model: a module, or what ``torch.compile`` made of anything.
    """
    calls = [getattr(model, "forward", model)]
    if isinstance(model, nn.Module):
        for module in inside_wrappers(model).modules():
            calls += [module._compiled_call_impl, *versions_of(module)]
    found = [wrapper_of(call) for call in calls if call is not None]
    return list({id(wrapper): wrapper for wrapper in found if wrapper is not None}.values())

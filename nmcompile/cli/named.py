"""TARGET on the command line: ``package.module:attribute`` or ``file.py:attribute``.

The attribute is a function that returns the model and its inputs, ``(model, args, kwargs)``, or
that tuple itself; a fourth part, for ``nmcompile tune`` alone, is an iterable of batches. Only a
module that is not there is reworded: what goes wrong inside of the user's file passes through with
its own traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nmcompile.errors import NMError, nearest

_EXAMPLE = "def case(): return model, (x,), {}"


class TargetError(NMError):
    """A TARGET of the command line that names nothing, or something else than a model."""


class Named(NamedTuple):
    """What TARGET names: ``model(*args, **kwargs)``, and for ``tune`` an iterable of batches."""

    model: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batches: Any = None


def load(target: str, meta: bool = False) -> Named:
    """Import TARGET and call it.

    Args:
        meta: what the function makes is on the meta device: without memory and values.

    Raises:
        TargetError: it is not of the form, its module or attribute does not exist, or it returns
            something else.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise TargetError(
            f"{target!r} is no TARGET: write package.module:attribute or file.py:attribute, where "
            f"the attribute is a function such as `{_EXAMPLE}`"
        )
    found: Any = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    for name in attribute.split("."):
        if not hasattr(found, name):
            own = [n for n in vars(found) if not n.startswith("_")]
            hint = nearest(name, own) if own else "it has none"
            raise TargetError(f"{place} has no attribute {name!r}: {hint}")
        found = getattr(found, name)
    return _named(found, target, meta)


def _named(found: Any, target: str, meta: bool) -> Named:
    import torch

    if callable(found) and not isinstance(found, torch.nn.Module):
        with torch.device("meta") if meta else nullcontext():
            found = found()
    elif meta:
        raise TargetError(f"{target} is no function: its tensors are made before --meta can matter")
    wanted = f"write a function that returns (model, args, kwargs): `{_EXAMPLE}`"
    if isinstance(found, torch.nn.Module):
        raise TargetError(f"{target} is a model without inputs: {wanted}")
    if not isinstance(found, tuple) or len(found) not in (2, 3, 4):
        what = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise TargetError(f"{target} gives {what}: {wanted}")
    model, args, kwargs = (*found, {})[:3]
    batches = found[3] if len(found) == 4 else None
    if not callable(model):
        raise TargetError(f"{target}: the model is a {type(model).__name__}: {wanted}")
    if isinstance(args, (torch.Tensor, str)) or not isinstance(args, (tuple, list)):
        raise TargetError(
            f"{target}: the inputs are a {type(args).__name__}, not a tuple: {wanted} "
            "(one input x is written (x,))"
        )
    if not isinstance(kwargs, Mapping):
        raise TargetError(f"{target}: kwargs is a {type(kwargs).__name__}, not a mapping: {wanted}")
    return Named(model, tuple(args), dict(kwargs), batches)


def _from_name(name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:  # as `python -m` has it
        sys.path.insert(0, folder)
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{name!r} is no module's name, and no file (.py)")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # of what the module itself imports
        hint = f" (is it the file {name}.py:...?)" if Path(f"{name}.py").exists() else ""
        raise TargetError(f"no module named {missing!r} here or installed{hint}") from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"no file {path} in {Path.cwd()}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python file.py` has it
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # what pickle and dataclasses look for
    spec.loader.exec_module(module)
    return module

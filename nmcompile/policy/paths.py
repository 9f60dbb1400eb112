"""Paths of modules as policies name them: without what PyTorch's own wrappers put in between.

``torch.compile`` of a part, activation checkpointing and FSDP wrap a module in another one, whose
only child it is; policies are written for the model inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn  # a policy is read without PyTorch

#: What a wrapper calls the module inside of it, and the wrapper's class.
_WRAPPED = {
    "_orig_mod": "OptimizedModule",
    "_checkpoint_wrapped_module": "ActivationWrapper",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
}


def without_wrappers(path: str, own: Collection[str] = ()) -> str:
    """The path without what wrappers add.

    ``own`` are whole paths that end in such a name and are no wrapper's (``own_names``).
    """
    if not any(name in path for name in _WRAPPED):
        return path
    kept: list[str] = []
    at = ""
    for name in path.split("."):
        at = f"{at}.{name}" if at else name
        if name not in _WRAPPED or at in own:
            kept.append(name)
    return ".".join(kept)


def is_inside(path: str, module: str) -> bool:
    """Whether a module lies below another one: ``a.b`` in ``a``, and all but the model in it."""
    return path != module and (not module or path.startswith(f"{module}."))


def own_names(model: nn.Module) -> tuple[str, ...]:
    """Paths of modules whose last name is a wrapper's although nothing wraps them."""
    found = []
    classes: dict[str, type] = {}
    for path, module in model.named_modules():
        classes[path] = type(module)
        parent, _, name = path.rpartition(".")
        wrapper = _WRAPPED.get(name)
        if wrapper and wrapper not in {cls.__name__ for cls in classes[parent].__mro__}:
            found.append(path)
    return tuple(found)


def named_modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Every module with its path in ``named_modules()`` and its path in policies, parents first."""
    own = own_names(model)
    for path, module in model.named_modules():
        yield path, without_wrappers(path, own), module

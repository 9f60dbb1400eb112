"""The module that a node belongs to, as ``model.named_modules()`` would call it."""

from __future__ import annotations

import re

from torch import fx

# Dynamo writes "L['self'].layers.0.fc", "G['model'].fc", "L['self']._modules['fc']" or
# "L['f'].__closure__[0].cell_contents.fc". The leading variable is none of the model's modules.
_ROOT = re.compile(r"^(?:[LG]\[[^\]]*\])+(?:\.__closure__\[\d+\]\.cell_contents)*")
# A name that is no identifier, in a functional call: "getattr(L['self'].layers, '0')".
_GETATTR = re.compile(r"getattr\(([^()]*), ['\"]([^'\"]*)['\"]\)")
#: What PyTorch's own wrappers put into a path; policies are written for the model inside.
_WRAPPED = re.compile(
    r"(?:^|\.)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)"
)
_ITEM = re.compile(r"(?:\._(?:modules|parameters|buffers))?\[['\"]?([^\]'\"]*)['\"]?\]")


def module_path(node: fx.Node) -> tuple[str, str]:
    """(path, class name) of the innermost module; ("", "") for an operation outside of any."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return "", ""
    path, cls = list(stack.values())[-1]
    name = cls if isinstance(cls, str) else getattr(cls, "__name__", str(cls))
    return normalise(path), name.rsplit(".", 1)[-1]


def normalise(path: str) -> str:
    """Turn Dynamo's source expression into a dotted module path."""
    while path != (path := _GETATTR.sub(r"\1.\2", path)):
        pass
    # A module that defines __getattr__ is written "L['self'].__dict__['_modules']['fc']".
    path = _ROOT.sub("", path).replace(".__dict__", "").replace("['_modules']", "._modules")
    path = _ITEM.sub(r".\1", path)
    path = _WRAPPED.sub("", path.strip(".").replace("..", "."))
    return path.strip(".")

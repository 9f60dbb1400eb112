"""Paths without what wrappers add, and names of one's own that look like it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nmcompile.policy.paths import is_inside, named_modules, own_names, without_wrappers


@pytest.mark.parametrize(
    ("path", "own", "expected"),
    [
        ("", (), ""),
        ("_orig_mod", (), ""),
        ("_orig_mod.a._checkpoint_wrapped_module._fsdp_wrapped_module.b", (), "a.b"),
        ("a._orig_mod_of_mine.b", (), "a._orig_mod_of_mine.b"),
        ("a._orig_mod._orig_mod", ("a._orig_mod",), "a._orig_mod"),
    ],
)
def test_what_is_left_of_a_path(path: str, own: tuple[str, ...], expected: str) -> None:
    assert without_wrappers(path, own) == expected


@pytest.mark.parametrize(
    ("path", "module", "expected"),
    [
        ("a.b", "a", True),
        ("a.b.c", "a", True),
        ("a", "", True),
        ("a", "a", False),
        ("", "", False),
        ("ab", "a", False),
        ("a", "a.b", False),
    ],
)
def test_a_module_is_inside_of_those_above_it(path: str, module: str, expected: bool) -> None:
    assert is_inside(path, module) is expected


def test_names_of_ones_own_stay() -> None:
    model = nn.ModuleDict(
        {
            "_orig_mod": torch.compile(nn.Sequential(nn.Linear(2, 2))),
            "b": checkpoint_wrapper(nn.Linear(2, 2)),
        }
    )
    assert own_names(model) == ("_orig_mod",)
    shown = {path: name for path, name, _ in named_modules(model)}
    assert shown == {
        "": "",
        "_orig_mod": "_orig_mod",
        "_orig_mod._orig_mod": "_orig_mod",
        "_orig_mod._orig_mod.0": "_orig_mod.0",
        "b": "b",
        "b._checkpoint_wrapped_module": "b",
    }

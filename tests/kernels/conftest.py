"""One suite for kernels, run where NMCOMPILE_KERNELS_ON says.

    interpreter   Triton's, on the CPU: TRITON_INTERPRET=1 too, set before Triton is imported
    cuda, cuda:N  a GPU
    cpu           no kernel at all: the operators' PyTorch code, to rehearse the suite

Tests that take ``device`` are left out of an ordinary run, which starts them in processes of their
own (``test_generated.py``), and the others are left out where the variable is set. The GPU check
makes a case of all tests that share a name and a first parameter: it is the kernel, what follows
the first hyphen is what it is run on.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.target import Target, chosen, kind

_HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "on(*places): kernels are tested there alone")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    alone = collection_path.name in ("test_generated.py", "test_device.py")
    needs_triton = collection_path.name in ("test_primitives.py", "test_tiles.py")
    left = (alone and chosen()) or (needs_triton and find_spec("triton") is None)
    return True if left else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    kept = [item for item in items if _HERE not in item.path.parents or _runs(item)]
    part, _, parts = os.environ.get("NMCOMPILE_KERNELS_PART", "0/1").partition("/")
    if chosen():
        kept = kept[int(part) :: int(parts)]
    left = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = kept


def _runs(item: Any) -> bool:
    if ("device" in item.fixturenames) != bool(chosen()):
        return False
    mark = item.get_closest_marker("on")
    return mark is None or kind() in mark.args


@pytest.fixture
def device() -> Target:
    """Where the kernels run."""
    target = Target(chosen())
    if target.kind == "cuda" and (index := torch.device(target.name).index) is not None:
        torch.cuda.set_device(index)
    if target.kind == "interpreter":
        assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before the start"
    torch.manual_seed(0)
    return target

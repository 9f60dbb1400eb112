"""The backend's options: ours are checked by us, Inductor's by Inductor, wrong ones by name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmcompile import ArgumentError, OptionError, Policy, PolicyError
from nmcompile.inductor.options import ReadPolicy, read_options


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"polcy": "full"}, OptionError, "unknown option 'polcy'.*did you mean 'policy'"),
        ({"max_fusion_sise": 8}, OptionError, "did you mean 'max_fusion_size'"),
        ({"max_fusion_size": "8"}, RuntimeError, "got str should be int"),
        ({"policy": "ful"}, PolicyError, "did you mean 'full'"),
        ({"policy": "nowhere/policy.toml"}, PolicyError, "nowhere/policy.toml"),
        ({"nm.autotune": 1}, OptionError, "nm.autotune = 1: write one of False, True"),
        (
            {"nm.kernels": "all"},
            OptionError,
            "nm.kernels = 'all': write one of 'auto', 'unfused'",
        ),
        ({"mode": "max-autotune"}, OptionError, r"beside options, torch.compile\(..., mode=...\)"),
        ({"nm.kernel": "auto"}, OptionError, "did you mean 'nm.kernels'"),
        (3, ArgumentError, "options = 3: write a mapping"),
        ({"nm.kernels": ["auto"]}, OptionError, "nm.kernels = .*: write one of"),
        ({"x" * 10**6: 1}, OptionError, "unknown option 'xxx"),
        ({"policy": 3}, PolicyError, "a recipe's name, a path, a Policy or a mapping, not 3"),
    ],
)
def test_wrong_options_are_named(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_options(None, options)


def test_our_own_options() -> None:
    settings = read_options(None, {"nm.autotune": True, "nm.kernels": "reference"})
    assert (settings.autotune, settings.kernels, settings.inductor) == (True, "reference", {})
    assert read_options(None, None).kernels == "auto"


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("lite", None, "needs use_joint_graph_passes = True, but mode='lite' sets it to False"),
        (None, {"use_joint_graph_passes": False}, "needs use_joint_graph_passes = True"),
        (None, {"selective_decompose": True}, "needs selective_decompose = False"),
    ],
)
def test_settings_that_would_prune_nothing_in_silence_are_refused(
    mode: str | None, options: Any, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        read_options(mode, options)


def test_a_read_policy_equals_its_file_only_while_the_content_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('schema = 1\nextends = "full"\n')
    read = ReadPolicy(str(file), Policy.load(file))
    assert read == str(file)
    assert str(file) == read
    file.write_text('schema = 1\nextends = "dense"\n')
    assert read != str(file)
    assert str(file) != read
    file.write_text("schema = ")
    assert read != str(file), "a broken file must be compiled anew, to raise its error"
    assert read != 3


class Wrapper:
    """What Dynamo keeps of a ``torch.compile`` call."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.kwargs: dict[str, Any] = {"options": options}


@pytest.mark.parametrize("again", [lambda options: options, copy.deepcopy, pickled])
def test_a_recompilation_takes_what_the_first_compilation_read(
    tmp_path: Path, again: Callable[[Any], Any]
) -> None:
    file = tmp_path / "p.toml"
    file.write_text('schema = 1\nextends = "gradients"\n')
    wrapper = Wrapper({"policy": str(file)})
    first = read_options(None, wrapper.kwargs["options"], wrapper).policy
    for text in ('schema = 1\nextends = "dense"\n', "schema = ", None):
        file.unlink() if text is None else file.write_text(text)
        options = again(wrapper.kwargs["options"])
        assert read_options(None, options, wrapper).policy == first
    assert options["policy"] == wrapper.kwargs["options"]["policy"]

"""The backend's options: ours are checked by us, Inductor's by Inductor, wrong ones by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.custom_graph_pass import CustomGraphPass

import nmcompile
from nmcompile import OptionError, Policy, PolicyError
from nmcompile.inductor.options import ReadPolicy, read_options


def run(options: dict[str, Any] | None = None, **keys: Any) -> torch.Tensor:
    layer = nn.Linear(16, 16, bias=False)
    nn.init.eye_(layer.weight)
    return torch.compile(layer, backend="nm_sparse", options=options, **keys)(torch.randn(8, 16))


def density(y: torch.Tensor) -> float:
    return (y != 0).float().mean().item()


def test_the_backend_is_registered_by_name() -> None:
    assert "nm_sparse" in torch.compiler.list_backends()


def test_no_options_mean_the_full_recipe() -> None:
    assert density(run()) == 0.5
    assert Policy.resolve(None) == Policy.recipe("full")


def test_a_policy_object_and_a_mapping() -> None:
    table = {"rule": [{"prune": "activation", "role": "fprop", "format": "1:4"}]}
    assert density(run({"policy": Policy(rules=table["rule"])})) == 0.25
    assert density(run({"policy": table})) == 0.25


def test_mode_works() -> None:
    assert density(run(mode="max-autotune-no-cudagraphs")) == 0.5


def test_inductor_options_go_to_inductor() -> None:
    assert density(run({"policy": "full", "max_fusion_size": 8})) == 0.5
    assert read_options(None, {"max-fusion-size": 8}).inductor == {"max_fusion_size": 8}


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
            "nm.kernels = 'all': write one of 'auto', 'operators'",
        ),
        ({"nm.kernel": "auto"}, OptionError, "did you mean 'nm.kernels'"),
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


def test_an_error_reaches_the_user_through_dynamo() -> None:
    with pytest.raises(Exception, match="did you mean 'policy'"):
        run({"polcy": "full"})


class Counting(CustomGraphPass):
    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graphs += 1

    def uuid(self) -> str:
        return "counting"


@pytest.mark.parametrize("where", ["option", "config"])
def test_the_users_own_joint_pass_is_kept(where: str) -> None:
    own = Counting()
    if where == "option":
        y = run({"joint_custom_pre_pass": own})
    else:
        with torch._inductor.config.patch(joint_custom_pre_pass=own, force_disable_caches=True):
            y = run()
    assert own.graphs == 1
    assert density(y) == 0.5


def test_a_read_policy_equals_its_file_only_while_the_content_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('schema = 1\nextends = "full"\n')
    read = ReadPolicy(str(file), Policy.load(file).digest)
    assert read == str(file)
    assert str(file) == read
    file.write_text('schema = 1\nextends = "dense"\n')
    assert read != str(file)
    assert str(file) != read
    file.write_text("schema = ")
    assert read != str(file), "a broken file must be compiled anew, to raise its error"
    assert read != 3


def test_logging_names_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="nmcompile"):
        nmcompile.explain(nn.Linear(16, 8), torch.randn(4, 16))
    text = caplog.text
    for step in ("find", "assign", "split_convolution_backward", "prune_forward"):
        assert f"joint graph: {step}, " in text

"""Paths of modules that share code, and which patterns name a layer by its index."""

from __future__ import annotations

import pytest
from torch import nn

from nmcompile import Policy, PolicyError, Rule
from nmcompile.capture.regions import Region, called_region, check_indices


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        ((), ""),
        (("layers.3",), "layers.3"),
        (("layers.0", "layers.1", "layers.2"), "layers.{0..2}"),
        (("h.0.mlp", "h.1.mlp", "h.4.mlp"), "h.{0..1,4}.mlp"),
        (("encoder", "decoder"), "{encoder,decoder}"),
        (("a.0.b.1", "a.1.b.1"), "a.{0..1}.b.1"),
    ],
)
def test_the_name_of_a_region(paths: tuple[str, ...], name: str) -> None:
    region = Region(paths)
    assert region.name == name
    shown = region.shown("fc")
    assert shown == ".".join(filter(None, (name, "fc")))
    assert region.each(shown) == (tuple(f"{p}.fc" for p in paths) or ("fc",))
    assert region.each(region.shown("")) == (paths or ("",))


def policy(module: str) -> Policy:
    return Policy(rules=[Rule(module=module, dense=True)])


BLOCK = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})


@pytest.mark.parametrize(
    "module", ["layers.0.*", "*.layers.3", "layers.[0-3].*", r"re:layers\.(0|1)\..*", "*.11.mlp*"]
)
def test_a_rule_on_an_index_that_is_not_there_is_refused(module: str) -> None:
    with pytest.raises(PolicyError, match="names a layer by its index") as error:
        check_indices(policy(module), BLOCK)
    assert "ModuleDict" in str(error.value)
    assert 'each="layers.*"' in str(error.value)


@pytest.mark.parametrize(
    "module",
    ["mlp.0", "re:mlp\\.1", "*.mlp.*", "fc1", "layer1.*", r"re:.*\.\d+\.attn", "conv2d*", None],
)
def test_other_rules_are_let_through(module: str | None) -> None:
    check_indices(Policy(rules=[Rule(module=module, dense=True)]), BLOCK)


def test_without_a_module_nothing_is_known() -> None:
    check_indices(policy("layers.0.*"), None)


def test_the_region_of_a_graph_that_several_modules_call() -> None:
    outer = Region()
    called = called_region(outer, ("b.10", "b.2"), ["", "b.2", "b.2.fc", "b.10"])
    assert called is not None
    assert (called.name, called.shown("b.2.fc")) == ("b.{2,10}", "b.{2,10}.fc")
    assert called.each("b.{2,10}.fc") == ("b.2.fc", "b.10.fc")
    assert called_region(outer, ("b.2",), ["b.2.fc"]) is outer
    assert called_region(outer, ("b.2", "b.3"), ["c.fc"]) is None


@pytest.mark.parametrize("lost", ["", "b"])
def test_a_call_that_lost_its_place_is_one_of_the_others(lost: str) -> None:
    called = called_region(Region(), (lost, "b.2"), ["", "b.2", "b.2.fc"])
    assert called is not None
    assert [called.shown(path) for path in ("", "b.2", "b.2.fc")] == ["b.2", "b.2", "b.2.fc"]
    assert called.each("b.2") == ("b.2",)


def test_the_region_of_a_graph_inside_of_shared_blocks() -> None:
    outer = Region(("layers.0", "layers.1"))
    called = called_region(outer, ("a", "b"), ["a.fc"])
    assert called is not None
    assert called.each(called.shown("a.fc")) == (
        "layers.0.a.fc",
        "layers.0.b.fc",
        "layers.1.a.fc",
        "layers.1.b.fc",
    )
